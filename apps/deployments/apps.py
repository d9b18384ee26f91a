"""App configuration."""

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    """Endpoints and deployments."""

    name = "apps.deployments"
