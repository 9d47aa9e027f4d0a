"""What tests of trainings share: a folder with a toy dataset and config, and a run of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.jobs.train import command as train
from longtake.storage.store import open_store
from tests.jobs.train.toy import TOY, config_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a dataset `mazes`, one without poses, and a config."""
    folder = tmp_path_factory.mktemp("train")
    store = open_store(folder / "store")
    random = np.random.default_rng(0)
    for name, has_pose in (("mazes", True), ("blind", False)):
        about = {"fps": 10.0, "action_space": {"turn": "degrees"}, "pose": ["x", "y", "yaw"] if has_pose else None}
        writer = DatasetWriter(store, name, recipe={}, **about, test=0.2)
        walks = np.cumsum(random.normal(0, 0.3, (20, 16, 3)), 1).astype(np.float32)
        frames = np.clip(128 + 60 * walks[:, :, None, None] + np.zeros((20, 16, 16, 16, 3)), 0, 255).astype(np.uint8)
        actions = random.normal(size=(20, 16, 2)).astype(np.float32)
        writer.write_shard(
            0, [Episode(f, a, w if has_pose else None) for f, a, w in zip(frames, actions, walks, strict=True)]
        )
        writer.finalize(1)
    (folder / "toy.yaml").write_text(TOY)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> str:
    """A run of two steps."""
    return train.train(config_of(place, "steps=2", "seed=11"), open_store(place / "store"))
