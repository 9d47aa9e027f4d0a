"""Worlds that one holds: trained models to observe with, step, fork, rewind, save, put agents into and plan in."""
