"""Nets that judge pictures, and their weights."""
