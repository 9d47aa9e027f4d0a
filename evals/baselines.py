"""Systems that need no training: floors, an oracle, and what a probe is given in a model's place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longtake.evals.systems import System
from longtake.models.conditions import Conditions, pose_gap


class CopyLast:
    """Floor: the last context frame, for ever."""

    frames_per_step = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Keep the last frame."""
        self.frame = frames[:, -1:]

    def step(self, conditions: Conditions) -> Tensor:
        """Return it."""
        return self.frame


class ContextMean:
    """Floor: the mean of the context. Blurry, which PSNR forgives: a hard floor for a blurry model."""

    frames_per_step = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Average the frames."""
        self.frame = frames.float().mean(1, keepdim=True).round().to(torch.uint8)

    def step(self, conditions: Conditions) -> Tensor:
        """Return the mean."""
        return self.frame


class NearestPose:
    """Oracle: the context frame whose pose is nearest (cells apart, plus half the chord of the turn)."""

    frames_per_step = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Keep all frames and their poses.

        Raises:
            ValueError: no pose was recorded.
        """
        if conditions.pose is None:
            raise ValueError("nearest_pose: this dataset has no pose")
        self.frames, self.pose = frames, conditions.pose

    def step(self, conditions: Conditions) -> Tensor:
        """Return the nearest one."""
        assert conditions.pose is not None
        nearest = pose_gap(self.pose, conditions.pose).argmin(1)
        return self.frames[torch.arange(len(nearest)), nearest][:, None]


BASELINES: dict[str, Callable[[], System]] = {
    "copy_last": CopyLast,
    "context_mean": ContextMean,
    "nearest_pose": NearestPose,
}
"""Systems that need no training: two floors and, last, the oracle."""


class Chance:
    """Floor of a probe: it carries nothing."""

    frames_per_step = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Keep the shape of a frame."""
        self.frame = torch.zeros_like(frames[:, :1])

    def carried(self) -> Tensor:
        """One number that is the same for all."""
        return torch.zeros(len(self.frame), 1)

    def step(self, conditions: Conditions) -> Tensor:
        """Return black."""
        return self.frame


class RawFrames(Chance):
    """Ceiling of a probe: all frames shown, made small."""

    SIDE = 8

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Keep them at 8 x 8."""
        super().observe(frames, conditions)
        images = frames.flatten(0, 1).movedim(-1, 1).float() / 255
        small = torch.nn.functional.adaptive_avg_pool2d(images, self.SIDE)
        self.small = small.reshape(len(frames), -1)

    def carried(self) -> Tensor:
        """All of them."""
        return self.small


PROBED: dict[str, Callable[[], System]] = {"chance": Chance, "raw_frames": RawFrames}
"""Systems of which only what they carry is asked."""
