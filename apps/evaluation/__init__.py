"""Datasets, evaluation runs and their metrics."""
