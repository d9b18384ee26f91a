"""App configuration."""

from django.apps import AppConfig


class PoliciesConfig(AppConfig):
    """Policies."""

    name = "apps.policies"
