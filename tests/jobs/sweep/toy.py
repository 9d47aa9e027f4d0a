"""A sweep of a toy training, small enough for tests: its configs, its dataset, and what is refused of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.config import load
from longtake.errors import UserError
from longtake.jobs.sweep import check as sweep_check
from longtake.jobs.sweep.config import CONFIGS, Sweep, SweepConfig, new
from longtake.storage.store import Store, open_store
from tests.jobs.toy_model import toy_model

ROOT = Path(__file__).resolve().parents[3]
TRAIN = """
name: toy
steps: 8
workers: 1
checkpoint_every: 2
data: {dataset: mazes, frames_per_step: 16, curriculum: [{frames: 8}], base_segment: 4}
engine: {backend: torch, warmup: 1, decay: 0.25}
validation: {every: 2, clips: 2}
""" + toy_model(1)


SWEEP = """
name: toys
train: %s
space:
  engine.lr: {choice: {good: 1.0e-2, bad: 1.0e-9}}
  model.window: {integer: [1, 3]}
  model.d_state: {choice: [4, 8]}
trials: 8
sampling: {startup: 4}
pruning: {first: 2}
objective: {column: val_loss}
"""


RETRIEVAL = (
    "objective={protocol: {task: retrieval, context: 4, horizon: 4, episodes: 2, split: val, "
    "sampler: {steps: 1}, metrics: [psnr]}}"
)


def sweep_of(place: Path, *overrides: str) -> tuple[Sweep, Store]:
    store = open_store(place / "store")
    config = load(SweepConfig, place / "sweep.yaml", list(overrides), search=CONFIGS)
    return sweep_check.check(new(config), store), store


def refused(place: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        sweep_of(place, *overrides)
    return "\n".join(caught.value.lines)
