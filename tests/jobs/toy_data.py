"""Datasets small enough for tests of verbs: how they are written, and walks past drifting colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.storage.store import Store

POSE = ["x", "y", "yaw"]


def write_dataset(store: Store, name: str, episodes: Sequence[Episode], pose: bool = True, **about: Any) -> str:
    """One shard of episodes; returns the fingerprint."""
    about = {"recipe": {}, "fps": 10.0, "action_space": {"turn": "degrees"}, "pose": POSE if pose else None} | about
    writer = DatasetWriter(store, name, **about)
    writer.write_shard(0, episodes)
    return writer.finalize(1).fingerprint


def shaded_walks(frames: int, count: int = 40) -> list[Episode]:
    """Each frame of 16 x 16 pixels has the colour of its place, and noise."""
    random, episodes = np.random.default_rng(0), []
    for _ in range(count):
        walk = np.cumsum(random.normal(0, 0.3, (frames, 3)), 0).astype(np.float32)
        shade = np.clip(128 + 60 * walk[:, None, None, :] + random.normal(0, 20, (frames, 16, 16, 3)), 0, 255)
        episodes.append(Episode(shade.astype(np.uint8), random.normal(size=(frames, 2)).astype(np.float32), walk))
    return episodes


def noise(clips: int, frames: int, side: int) -> list[Episode]:
    """Frames without pose that say nothing of one another."""
    pictures = np.random.default_rng(0).integers(0, 256, (clips, frames, side, side, 3), dtype=np.uint8)
    return [Episode(clip, np.zeros((frames, 2), np.float32), None) for clip in pictures]
