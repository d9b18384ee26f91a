"""The inference service: a process of its own, and a small library. It knows nothing of Django."""

VERSION = "0.1.0"
