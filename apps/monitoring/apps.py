"""App configuration."""

from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    """Traffic and the inference log."""

    name = "apps.monitoring"
