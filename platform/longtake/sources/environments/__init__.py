"""Environments that are played for episodes."""
