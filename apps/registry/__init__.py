"""Registered models, their immutable versions, and the validation that decides whether one may serve."""
