"""Latents and the frames that they stand for."""
