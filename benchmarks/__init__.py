"""Measurements of the running product; each prints JSON lines."""
