"""Whatever can be scored: it observes a context, then steps frame by frame. Models, floors, and the oracle.

Letters: b clips side by side, t frames. All frames are uint8 (b, t, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.streams import Streams
from longtake.models.tokenizer import Tokenizer
from longtake.models.world_model import WorldModel


class System(Protocol):
    """The face of everything that a task can score."""

    frames_per_step: int
    """Frames that it generates at a time."""

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Be shown the context (b, t, H, W, 3)."""

    def step(self, conditions: Conditions) -> Tensor:
        """Generate the next frames (b, t, H, W, 3), `frames_per_step` of them or the last few, one per condition."""


def generate(system: System, frames: Tensor, conditions: Conditions, context: int, horizon: int) -> Tensor:
    """Show a system the context and let it make the rest: (b, horizon, H, W, 3).

    Args:
        system: fresh.
        frames: uint8 (b, at least context, H, W, 3).
        conditions: of the frames shown and of those to make.
        context: frames shown.
        horizon: frames to make.
    """
    system.observe(frames[:, :context], conditions.frames(0, context))
    return go_on(system, conditions, context, context + horizon)


def go_on(system: System, conditions: Conditions, start: int, stop: int) -> Tensor:
    """Let a system that has observed what comes before make frames start..stop-1: (b, t, H, W, 3)."""
    starts = range(start, stop, system.frames_per_step)
    return torch.cat([system.step(conditions.frames(t, min(t + system.frames_per_step, stop))) for t in starts], 1)


class ModelSystem:
    """A world model behind the face; `wiped` forgets everything between the context and the first generated frame.

    A model that was never shown a context in training is shown none here either.
    """

    def __init__(
        self,
        model: WorldModel,
        tokenizer: Tokenizer,
        sampler: SamplerConfig,
        seeds: Sequence[int],
        wiped: bool = False,
    ) -> None:
        self.streams = Streams(model, tokenizer, sampler, seeds)
        self.wiped = wiped or not model.shown_context
        self.frames_per_step = self.streams.frames_per_step

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Fill the memory, or leave it empty where it is to be wiped."""
        if not self.wiped:
            self.streams.observe(frames, conditions)

    @property
    def nbytes(self) -> int:
        """Bytes that it carries, for all clips together."""
        return self.streams.nbytes

    def carried(self) -> Tensor:
        """All numbers of the memory, (b, F) fp32: what a probe may read."""
        clips, memory = len(self.streams), self.streams.memory
        if memory is None:
            return torch.zeros(clips, 1)
        return torch.cat([part.float().reshape(clips, -1) for part in memory.tensors], 1).cpu()

    def step(self, conditions: Conditions) -> Tensor:
        """Generate frames and remember them."""
        return self.streams.step(conditions)
