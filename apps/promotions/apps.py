"""App configuration."""

from django.apps import AppConfig


class PromotionsConfig(AppConfig):
    """Promotions."""

    name = "apps.promotions"
