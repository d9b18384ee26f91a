"""App configuration."""

from django.apps import AppConfig


class PoliciesConfig(AppConfig):
    """Policies."""

    name = "apps.policies"

    def ready(self) -> None:
        """Tell the OpenAPI generator how external checks say who they are."""
        from apps.policies import schema  # noqa: F401
