"""App configuration."""

from django.apps import AppConfig


class PacksConfig(AppConfig):
    """Model cards, evidence packs and mapping tables."""

    name = "apps.packs"
