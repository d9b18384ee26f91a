"""App configuration."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """People, teams, roles and tokens."""

    name = "apps.accounts"
