"""Planted systems whose memory is known: what a task finds of them is what they were built with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from longtake.evals.task import EvalClip
from longtake.models.conditions import Conditions

SAME = 1e-3
"""How far apart two poses of one place may be, in cells."""


class Truth:
    """Returns the truth of clips; it is never shown what it is asked for."""

    frames_per_step = 1

    def __init__(self, made: Sequence[EvalClip], context: int) -> None:
        self.truth, self.at, self.context = torch.from_numpy(np.stack([q.frames for q in made])), context, context

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        assert frames.shape[1] == self.context

    def step(self, conditions: Conditions) -> Tensor:
        self.at += 1
        return self.truth[:, self.at - 1 : self.at]


class Places:
    """Remembers the first `known` places of the context, at least a cell apart, as they looked; else it shows grey. It
    carries what it is told to."""

    frames_per_step = 1

    def __init__(self, known: int, nbytes: int | None = None) -> None:
        self.known = known
        if nbytes is not None:
            self.nbytes = nbytes

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        assert conditions.pose is not None
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in frames]
        for kept, clip, poses in zip(self.kept, frames, conditions.pose, strict=True):
            for frame, pose in zip(clip, poses, strict=True):
                if len(kept) < self.known and all((pose - old).norm() >= 1 for old, _ in kept):
                    kept.append((pose, frame))

    def step(self, conditions: Conditions) -> Tensor:
        assert conditions.pose is not None
        made = [self._recall(*clip) for clip in zip(self.kept, conditions.pose[:, 0], strict=True)]
        return torch.stack(made)[:, None]

    def _recall(self, kept: list[tuple[Tensor, Tensor]], asked: Tensor) -> Tensor:
        grey = torch.full((8, 8, 3), 128, dtype=torch.uint8)
        return next((frame for pose, frame in kept if (pose - asked).norm() < SAME), grey)


class Window:
    """Remembers exactly the last `known` frames of the stream and their poses: it shows the newest one of the asked
    pose, or grey. Grey is not remembered as what it stands for."""

    frames_per_step = 1

    def __init__(self, known: int) -> None:
        self.known = known

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        assert conditions.pose is not None
        self.frames, self.poses = frames, conditions.pose
        self.true = torch.ones(frames.shape[:2], dtype=torch.bool)

    def step(self, conditions: Conditions) -> Tensor:
        assert conditions.pose is not None
        count = self.frames.shape[1]
        same = (self.poses - conditions.pose).norm(dim=-1) < SAME
        same &= self.true & (torch.arange(count) >= count - self.known)
        newest = count - 1 - same.flip(1).int().argmax(1)
        known = same.any(1)
        found = self.frames[torch.arange(len(newest)), newest]
        frame = torch.where(known[:, None, None, None], found, torch.full_like(found, 128))[:, None]
        self.frames = torch.cat([self.frames, frame], 1)
        self.poses = torch.cat([self.poses, conditions.pose], 1)
        self.true = torch.cat([self.true, known[:, None]], 1)
        return frame

    def carried(self) -> Tensor:
        return self.frames[:, self.frames.shape[1] - self.known :].float().flatten(1)
