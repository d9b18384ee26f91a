"""Datasets, metrics and evaluations."""
