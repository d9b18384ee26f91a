"""App configuration."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Jobs and the controller."""

    name = "apps.jobs"
