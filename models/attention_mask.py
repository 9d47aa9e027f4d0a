"""Which frames a frame attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

Frame = TypeVar("Frame", int, Tensor)
FAR = 2**30
"""More frames than any stream has."""


@dataclass(frozen=True)
class Reach:
    """Which frames a frame attends to.

    `window`: its last `past` frames, itself included, and `future` later ones. `chunk`: all frames of its own chunk of
    `past` frames and of the one before. `full`: every frame so far, and with `future` every frame.
    """

    form: Literal["window", "chunk", "full"]
    past: int = 1
    future: int = 0

    def spans(self, frames: Frame) -> tuple[Frame, Frame]:
        """First and last frame that each of `frames`, or one, attends to; may lie outside the clip."""
        if self.form == "window":
            return frames - (self.past - 1), frames + self.future
        if self.form == "chunk":
            chunk = frames // self.past
            return (chunk - 1) * self.past, (chunk + 1) * self.past - 1
        return frames * 0 - FAR, frames if not self.future else frames * 0 + FAR

    def kept(self, frames: int) -> int:
        """How many of `frames` frames seen so far must be kept for the frames to come."""
        if self.form == "full":
            return frames
        return min(frames, self.past - 1) if self.form == "window" else min(frames, self.past)
