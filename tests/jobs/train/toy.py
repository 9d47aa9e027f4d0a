"""A training small enough for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from longtake.config import load
from longtake.datasets.episode import Episode
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loop import train_loop
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from longtake.training.context import LocalContext
from tests.jobs.toy_data import write_dataset
from tests.jobs.toy_model import toy_model

TOY = """
name: toy
steps: 6
workers: 0
checkpoint_every: 2
data: {dataset: mazes, frames_per_step: 16, curriculum: [{frames: 8}], base_segment: 4}
engine: {backend: torch, warmup: 1, lr: 1.0e-2}
validation: {every: 3, clips: 2}
""" + toy_model(1, 2)


class Killed(Exception):
    """Stands for a process that dies after a checkpoint."""


class DyingContext(LocalContext):
    def save(self, step: int, *arguments: object, **options: object) -> None:
        super().save(step, *arguments, **options)  # type: ignore[arg-type]
        if step == 4:
            self.finish()
            raise Killed


def write_place(folder: Path) -> None:
    """A store, a dataset `mazes`, one without poses, and the config."""
    store = open_store(folder / "store")
    random = np.random.default_rng(0)
    for name, has_pose in (("mazes", True), ("blind", False)):
        walks = np.cumsum(random.normal(0, 0.3, (20, 16, 3)), 1).astype(np.float32)
        frames = np.clip(128 + 60 * walks[:, :, None, None] + np.zeros((20, 16, 16, 16, 3)), 0, 255).astype(np.uint8)
        actions = random.normal(size=(20, 16, 2)).astype(np.float32)
        episodes = [Episode(f, a, w if has_pose else None) for f, a, w in zip(frames, actions, walks, strict=True)]
        write_dataset(store, name, episodes, pose=has_pose, test=0.2)
    (folder / "toy.yaml").write_text(TOY)


def config_of(place: Path, *overrides: str) -> WorldModelTraining:
    return load(WorldModelTraining, place / "toy.yaml", list(overrides), search=train.CONFIGS)


def run(store: Store, name: str, config: WorldModelTraining, device: str = "") -> dict[str, torch.Tensor]:
    """Train in this process, by default where a training would; the final weights."""
    train_loop(LocalContext(store, name, keep=9, device=device), config)
    with checkpoints.opened(store, name, config.steps) as folder:
        return load_file(folder / "model.safetensors")


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)
