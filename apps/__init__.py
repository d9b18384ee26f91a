"""The console's rooms; imports go downward only (see docs/architecture.md)."""
