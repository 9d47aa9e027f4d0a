"""A model with something taken away or given: its memory wiped, another clip's context, the truth itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from longtake.evals.systems import System
from longtake.models.conditions import Conditions
from longtake.models.tokenizer import Tokenizer


class SwappedContext:
    """A system that is shown the frames of another clip in place of its own context, under its own conditions.

    What it still gets right it does not have from the context: the difference to the system itself is memory.
    """

    def __init__(self, system: System, frames: Tensor) -> None:
        """`frames`: the others' context (b, t, H, W, 3)."""
        self.system, self.frames = system, frames
        self.frames_per_step = system.frames_per_step

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Show the others' frames, as many as its own would be."""
        self.system.observe(self.frames[:, : frames.shape[1]], conditions)

    def carried(self) -> Tensor:
        """What the system carries, where it tells."""
        carried_numbers: Tensor = self.system.carried()  # type: ignore[attr-defined]
        return carried_numbers

    def step(self, conditions: Conditions) -> Tensor:
        """Let the system go on."""
        return self.system.step(conditions)


class WipedMemory:
    """A system of others that forgets its context between the last frame shown and the first one made."""

    def __init__(self, system: Any) -> None:
        """`system` has `forget()` beside the face of a System."""
        self.system, self.frames_per_step = system, system.frames_per_step

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Show it the context and take it away again."""
        self.system.observe(frames, conditions)
        self.system.forget()

    def carried(self) -> Tensor:
        """What is left, where the system tells."""
        left: Tensor = self.system.carried()
        return left

    def step(self, conditions: Conditions) -> Tensor:
        """Let the system go on."""
        frames: Tensor = self.system.step(conditions)
        return frames


class Reconstruction:
    """Ceiling of a model on latents: the truth through its tokenizer and back. No such model can be sharper."""

    frames_per_step = 1

    def __init__(self, tokenizer: Tokenizer, truth: Tensor) -> None:
        """`truth`: frames (b, t, H, W, 3) to come after the context."""
        self.tokenizer, self.truth = tokenizer, truth
        self.made = 0

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Nothing to learn from it."""

    def step(self, conditions: Conditions) -> Tensor:
        """Return the next true frame as the tokenizer shows it."""
        frame = self.truth[:, self.made : self.made + 1]
        self.made += 1
        return self.tokenizer.decode(self.tokenizer.encode(frame)).cpu()
