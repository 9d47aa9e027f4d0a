"""A training small enough for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from longtake.config import load
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loop import train_loop
from longtake.storage.store import Store
from longtake.training import checkpoints
from longtake.training.context import LocalContext

TOY = """
name: toy
steps: 6
workers: 0
checkpoint_every: 2
data: {dataset: mazes, frames_per_step: 16, curriculum: [{frames: 8}], base_segment: 4}
model:
  height: 16
  width: 16
  dim: 16
  heads: 2
  window: 2
  d_state: 4
  headdim: 8
  layers: [{mixer: ssm, spatial_block: [1, 1]}, {mixer: ssm, spatial_block: [2, 2]}]
engine: {backend: torch, warmup: 1, lr: 1.0e-2}
validation: {every: 3, clips: 2}
"""


def config_of(place: Path, *overrides: str) -> WorldModelTraining:
    return load(WorldModelTraining, place / "toy.yaml", list(overrides), search=train.CONFIGS)


def run(store: Store, name: str, config: WorldModelTraining) -> dict[str, torch.Tensor]:
    """Train in this process; the final weights."""
    train_loop(LocalContext(store, name, keep=9), config)
    with checkpoints.opened(store, name, config.steps) as folder:
        return load_file(folder / "model.safetensors")


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)
