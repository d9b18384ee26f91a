"""Promotion requests: frozen evidence, a second person's signature, and the way into service."""
