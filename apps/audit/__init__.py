"""The audit log: who did what, when, to what, and the proof that nobody changed it since."""
