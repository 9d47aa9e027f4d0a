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
from longtake.models.memory import Memory
from longtake.models.rollout import prefill, rollout
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
        self.model, self.tokenizer, self.sampler = model.eval(), tokenizer, sampler
        self.wiped = wiped or not model.shown_context
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.frames_per_step = model.config.chunk or 1
        self.memory: Memory | None = None

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Fill the memory, and wipe it again where that is asked."""
        self.memory = (
            None if self.wiped else prefill(self.model, self.tokenizer.encode(frames), conditions, self.memory)
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it carries, for all clips together."""
        return 0 if self.memory is None else self.memory.nbytes["total"]

    def carried(self) -> Tensor:
        """All numbers of the memory, (b, F) fp32: what a probe may read."""
        if self.memory is None:
            return torch.zeros(len(self.generators), 1)
        parts: list[Tensor] = []

        def keep(values: Tensor) -> Tensor:
            parts.append(values)
            return values

        self.memory.map(keep)
        return torch.cat([part.float().reshape(len(self.generators), -1) for part in parts], 1)

    def step(self, conditions: Conditions) -> Tensor:
        """Generate frames and remember them."""
        frames, self.memory = rollout(
            self.model, conditions, conditions.length, self.memory, self.sampler, self.generators
        )
        return self.tokenizer.decode(frames)
