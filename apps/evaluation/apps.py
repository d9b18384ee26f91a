"""App configuration."""

from django.apps import AppConfig


class EvaluationConfig(AppConfig):
    """Datasets and evaluations."""

    name = "apps.evaluation"
