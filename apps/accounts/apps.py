"""App configuration."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """People, teams, roles and tokens."""

    name = "apps.accounts"

    def ready(self) -> None:
        """Let the API's description know how callers sign in."""
        from apps.accounts import schema  # noqa: F401
