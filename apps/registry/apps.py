"""App configuration."""

from django.apps import AppConfig


class RegistryConfig(AppConfig):
    """The model registry."""

    name = "apps.registry"
