"""Streams of a world model side by side: frames in and frames out, each stream with its own memory and noise.

What evaluation scores and what a player holds are this one class, so both make the same frames. Letters: b streams,
t frames, H·W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.memory import Memory
from longtake.models.rollout import prefill, rollout
from longtake.models.tokenizer import Tokenizer
from longtake.models.world_model import WorldModel


@dataclass(frozen=True)
class StreamState:
    """All that the next frames follow from beside weights and conditions; a value that can be kept, and come back to.

    `noise`: the state of each stream's generator, uint8 tensors.
    """

    memory: Memory | None
    noise: tuple[Tensor, ...]

    def of_streams(self, chosen: Sequence[int]) -> StreamState:
        """The state of some streams, in that order; one that is named twice is there twice."""
        memory = None if self.memory is None else self.memory.of_streams(chosen, len(self.noise))
        return StreamState(memory, tuple(self.noise[index] for index in chosen))


class Streams:
    """A model, its tokenizer and its sampler, with the state of some streams.

    It computes where the model lies; frames and conditions come from the CPU's memory and go back there. A frame's bits
    follow from those that share its batch as little as the matrix products do: on CPUs seen so far not at all from four
    streams on. With `least` a step is never of fewer: copies of the first stream fill it up, and are thrown away.
    """

    def __init__(
        self, model: WorldModel, tokenizer: Tokenizer, sampler: SamplerConfig, seeds: Sequence[int], least: int = 1
    ) -> None:
        """`seeds`: of each stream's noise; `least`: streams of a forward pass."""
        self.model, self.tokenizer, self.sampler, self.least = model.eval(), tokenizer, sampler, least
        self.device = next(model.parameters()).device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.frames_per_step = model.config.chunk or 1
        self.memory: Memory | None = None

    def __len__(self) -> int:
        return len(self.generators)

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Remember frames uint8 (b, t, H, W, 3)."""
        shown = self.tokenizer.encode(frames.to(self.device))
        self.memory = prefill(self.model, shown, conditions.to(self.device), self.memory)

    def step(self, conditions: Conditions) -> Tensor:
        """Make frames uint8 (b, t, H, W, 3), one per condition, and remember them."""
        if len(self) < self.least:
            return self._filled_up(conditions)
        conditions = conditions.to(self.device)
        output, self.memory = rollout(
            self.model, conditions, conditions.length, self.memory, self.sampler, self.generators
        )
        return self.tokenizer.decode(output).cpu()

    def _filled_up(self, conditions: Conditions) -> Tensor:
        """A step of the streams among copies of the first one."""
        own = list(range(len(self)))
        rows = [*own, *[0] * (self.least - len(self))]
        filled = self.with_state(self.state.of_streams(rows))
        output = filled.step(conditions.chosen(torch.tensor(rows)))
        self._take(filled.state.of_streams(own))
        return output[: len(self)]

    def forget(self) -> None:
        """Lose all that is remembered; the noise goes on."""
        self.memory = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all streams carry together."""
        return 0 if self.memory is None else self.memory.nbytes["total"]

    @property
    def state(self) -> StreamState:
        """What the next frames follow from."""
        return StreamState(self.memory, tuple(generator.get_state() for generator in self.generators))

    def with_state(self, state: StreamState) -> Streams:
        """Other streams of the same model, that go on from a state."""
        other = Streams(self.model, self.tokenizer, self.sampler, [0] * len(state.noise), self.least)
        other._take(state)
        return other

    def _take(self, state: StreamState) -> None:
        self.memory = state.memory
        for generator, noise in zip(self.generators, state.noise, strict=True):
            generator.set_state(noise)
