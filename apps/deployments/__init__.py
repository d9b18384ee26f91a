"""Endpoints, what serves on them, and the signed manifest that the inference service follows."""
