"""A dataset whose frames tell their episode and number, and the plan to train on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Codec
from longtake.datasets.writer import DatasetWriter
from longtake.storage.store import open_store
from longtake.streaming.plan import Clip, Plan


def numbered(
    store_path: str | Path,
    episodes: int = 10,
    length: int = 64,
    name: str = "numbered",
    edge: int = 2,
    codec: Codec = "zstd",
) -> Dataset:
    """A dataset whose frames say where they are from: (episode's own number, frame)."""
    about: dict[str, Any] = {"fps": 1, "action_space": {}, "pose": ["x", "y", "yaw"]}
    making = DatasetWriter(open_store(store_path), name, recipe={}, chunk=8, codec=codec, **about)
    for shard in range(2):
        made = []
        for number in range(shard * episodes // 2, (shard + 1) * episodes // 2):
            frames = np.zeros((length, edge, edge, 3), np.uint8)
            frames[..., 0], frames[..., 1] = number, np.arange(length)[:, None, None]
            actions = np.arange(1, length + 1, dtype=np.float32)[:, None]
            made.append(Episode(frames, actions, np.zeros((length, 3), np.float32)))
        making.write_shard(shard, made)
    return making.finalize(2)


def train_plan(data: Dataset, clip: Clip = "forward") -> Plan:
    return Plan.of(data, "train", stages=[(6, 16), (None, 32)], frames_per_step=96, base_segment=8, seed=0,
                   clip=clip)  # fmt: skip
