"""A model small enough for tests of trainings, as a config says it."""

from __future__ import annotations


def toy_model(*blocks: int) -> str:
    """YAML of a model of 16 x 16 pixels with a block-wise SSM for each edge of a block."""
    layers = ", ".join(f"{{mixer: ssm, spatial_block: [{edge}, {edge}]}}" for edge in blocks)
    return f"""
model:
  height: 16
  width: 16
  dim: 16
  heads: 2
  window: 2
  d_state: 4
  headdim: 8
  layers: [{layers}]
"""
