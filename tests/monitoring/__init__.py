"""Tests of traffic and the inference log."""
