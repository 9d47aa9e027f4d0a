"""What a world is given, as arrays with every axis; whatever does not fit is told in one line.

Letters: b streams, T frames, A numbers of an action. With `single` what is given has no axis of streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longtake.datasets.controls import Controls
from longtake.errors import UserError
from longtake.worlds.about import About

Frames: TypeAlias = NDArray[np.uint8]
Action: TypeAlias = str | Sequence[str] | ArrayLike
"""A name, for all streams or one each; or numbers (A), (b, A), and with frames of a step (T, A), (b, T, A)."""


@dataclass(frozen=True)
class Inputs:
    """What fits. conditioning: what the model is told of a frame; longest: frames of a context, None for any."""

    about: About
    conditioning: str
    streams: int
    single: bool
    frames_per_step: int
    longest: int | None

    @property
    def controls(self) -> Controls:
        """What can be done."""
        return self.about.controls

    def shown(self, frames: ArrayLike, seen: int) -> Frames:
        """Pictures as (b, T, H, W, 3), after so many."""
        shown = self._in(np.asarray(frames), 4, "frames")
        if shown.dtype != np.uint8 or shown.shape[2:] != self.about.frame_shape or shown.shape[1] == 0:
            raise UserError(
                f"frames: {shown.dtype} {shown.shape[1:]}, but this world's are uint8 (T, "
                f"{', '.join(map(str, self.about.frame_shape))})"
            )
        if self.longest is not None and seen + shown.shape[1] > self.longest:
            raise UserError(
                f"frames: a context of {seen + shown.shape[1]}, but the training's clips had {self.longest} in all: "
                "show fewer, or allow it with beyond_training=True"
            )
        if shown.shape[1] % self.frames_per_step:
            raise UserError(f"frames: {shown.shape[1]}, but this model takes {self.frames_per_step} at a time")
        return np.ascontiguousarray(shown)

    def actions(self, count: int, actions: ArrayLike | None, seen: int) -> NDArray[np.float32]:
        """Actions (b, T, A) of pictures that are shown after so many; none leads into a stream's first one."""
        if actions is None:
            if self.conditioning != "pose":
                raise UserError("actions: missing; this model is told the action that led into each frame")
            return np.zeros((self.streams, count, self.controls.width), np.float32)
        facts = self._in(np.asarray(actions, np.float32), 2, "actions").copy()
        if facts.shape != (self.streams, count, self.controls.width) or not np.isfinite(facts).all():
            raise UserError(f"actions: {facts.shape[1:]}, expected ({count}, {self.controls.width}) finite numbers")
        if not seen:
            facts[:, 0] = 0
        return facts

    def action(self, action: Action | None) -> NDArray[np.float32]:
        """An action as (b, T, A), T the frames of a step."""
        width = self.controls.width
        if action is None:
            action = np.zeros(width, np.float32)
        names = [action] if isinstance(action, str) else action
        if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
            action = np.array([self.controls.named(str(name)).action for name in names], np.float32)
        facts = np.asarray(action, np.float32)
        if problem := self.controls.problem(facts):
            raise UserError(f"action: {problem}; by name: {', '.join(c.name for c in self.controls.controls)}")
        shape = (self.streams, self.frames_per_step, width)
        if facts.ndim == 2 and (self.frames_per_step == 1 or len(facts) != self.frames_per_step or not self.single):
            facts = facts[:, None]
        try:
            return np.array(np.broadcast_to(facts, shape))
        except ValueError:
            raise UserError(f"action: {facts.shape}, expected one, or one for each of {self.streams} streams") from None

    def poses(self, count: int, pose: ArrayLike) -> NDArray[np.float64]:
        """Poses as (b, T, 3)."""
        b = self.streams
        given = np.asarray(pose, np.float64)
        given = given[..., None, :] if given.ndim == (1 if self.single else 2) else given
        given = given[None] if self.single else given
        if given.shape != (b, count, 3) or not np.isfinite(given).all():
            raise UserError(f"pose: {np.shape(pose)}, expected finite x, y and yaw of {count} frames of {b} streams")
        return given

    def _in(self, values: NDArray[Any], ndim: int, name: str) -> NDArray[Any]:
        """Values with an axis of streams; `ndim`: of one stream's."""
        values = values[None] if self.single else values
        if values.ndim != ndim + 1 or len(values) != self.streams:
            raise UserError(f"{name}: shape {values.shape}, expected {ndim} axes of {self.streams} streams")
        return values
