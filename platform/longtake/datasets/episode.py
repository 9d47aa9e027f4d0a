"""What was seen, done and known of T frames, and why something is no episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longtake.datasets.shard import Array
from longtake.motion import POSE_COLUMNS, PoseKind

UNIT = 1e-3  # how far from 1 the length of a quaternion may be

LABEL = "label."  # what the stored name of a label begins with


@dataclass(frozen=True)
class Episode:
    """What was seen, what was done and what else is known of T frames.

    frames uint8 (T, H, W, 3) or latents; actions float32 (T, A), or int64 (T,) with -1 for none; pose float32 (T, P)
    or None; labels: integers, floats or truth values (T, ...) by name.
    """

    frames: Array
    actions: Array
    pose: Array | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by the name they are stored under."""
        named = {"frames": self.frames, "actions": self.actions, "pose": self.pose}
        labels = {LABEL + name: array for name, array in self.labels.items()}
        return {name: array for name, array in named.items() if array is not None} | labels


def faults(episode: Episode) -> list[str]:
    """Everything that keeps it from being an episode, in words; empty if nothing does."""
    frames, actions, pose = episode.frames, episode.actions, episode.pose
    problems = [f"{n}: {len(a)} long, frames are {len(frames)}" for n, a in _tall(episode) if len(a) != len(frames)]
    problems += [
        f"{name}: a single number, expected one per frame" for name, a in episode.arrays().items() if not a.ndim
    ]
    if frames.dtype == np.uint8:
        if frames.ndim != 4 or frames.shape[3] != 3:
            problems.append(f"frames: uint8 {frames.shape}, expected (T, H, W, 3)")
    elif frames.dtype.kind != "f":
        problems.append(f"frames: {frames.dtype}, expected uint8 or latents of floats")
    discrete = actions.dtype == np.int64 and actions.ndim == 1
    if not discrete and not (actions.dtype == np.float32 and actions.ndim == 2):
        problems.append(f"actions: {actions.dtype} {actions.shape}, expected float32 (T, A) or int64 (T,)")
    elif discrete and actions.min(initial=0) < -1:
        problems.append(f"actions: {actions.min()}, expected classes from 0 on, -1 for none")
    if pose is not None and (pose.dtype != np.float32 or pose.ndim != 2):
        problems.append(f"pose: {pose.dtype} {pose.shape}, expected float32 (T, P)")
    problems += [
        f"label {name}: {a.dtype}, expected numbers" for name, a in episode.labels.items() if a.dtype.kind not in "biuf"
    ]
    if frames.size == 0:
        problems.append(f"frames: none, the shape is {frames.shape}")
    return problems + _infinite(episode)


def pose_faults(pose: Array, kind: PoseKind) -> list[str]:
    """Why float32 (T, P) is no pose of that kind, in words."""
    widths = POSE_COLUMNS[kind]
    if pose.ndim != 2 or pose.shape[1] not in widths:
        return [f"pose: {pose.shape}, a {kind} pose is (T, {' or '.join(map(str, widths))})"]
    off = np.abs(np.linalg.norm(pose[:, 3:].astype(np.float64), axis=1) - 1) if kind == "se3" else np.zeros(1)
    if not (off <= UNIT).all():
        worst = int(np.argmax(~(off <= UNIT)))
        length = np.linalg.norm(pose[worst, 3:])
        return [f"pose: the quaternion of frame {worst} is of length {length:.3g}, expected 1"]
    return []


def _tall(episode: Episode) -> list[tuple[str, Array]]:
    return [(name, array) for name, array in episode.arrays().items() if array.ndim and name != "frames"]


def _infinite(episode: Episode) -> list[str]:
    """Labels may say NaN for unknown; what a model is fed may not."""
    problems = []
    for name, array in episode.arrays().items():
        if array.dtype.kind == "f" and array.ndim and not name.startswith(LABEL):
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if bad.any():
                problems.append(f"{name}: NaN or infinite at frame {int(bad.argmax())} ({int(bad.sum())} such frames)")
    return problems
