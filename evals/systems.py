"""Whatever can be scored: it observes a context, then steps frame by frame. Models, floors, and the oracle.

Letters: b clips side by side, t frames. All frames are uint8 (b, t, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

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

    stride: int
    """Frames that it generates at a time."""

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Be shown the context (b, t, H, W, 3)."""

    def step(self, conditions: Conditions) -> Tensor:
        """Generate the next frames (b, t, H, W, 3), `stride` of them or the last few, one per condition."""


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
    starts = range(start, stop, system.stride)
    return torch.cat([system.step(conditions.frames(t, min(t + system.stride, stop))) for t in starts], 1)


class CopyLast:
    """Floor: the last context frame, for ever."""

    stride = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Keep the last frame."""
        self.frame = frames[:, -1:]

    def step(self, conditions: Conditions) -> Tensor:
        """Return it."""
        return self.frame


class ContextMean:
    """Floor: the mean of the context. Blurry, which PSNR forgives: a hard floor for a blurry model."""

    stride = 1

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Average the frames."""
        self.frame = frames.float().mean(1, keepdim=True).round().to(torch.uint8)

    def step(self, conditions: Conditions) -> Tensor:
        """Return the mean."""
        return self.frame


class NearestPose:
    """Oracle: the context frame whose pose is nearest (cells apart, plus half the chord of the turn)."""

    stride = 1

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
        gap = self.pose - conditions.pose
        away = gap[..., :2].norm(dim=-1) + gap[..., 2:].norm(dim=-1) / 2
        nearest = away.argmin(1)
        return self.frames[torch.arange(len(nearest)), nearest][:, None]


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
        self.stride = model.config.chunk or 1
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


class StrangersContext:
    """A system that is shown the frames of another clip in place of its own context, under its own conditions.

    What it still gets right it does not have from the context: the difference to the system itself is memory.
    """

    def __init__(self, system: System, frames: Tensor) -> None:
        """`frames`: the others' context (b, t, H, W, 3)."""
        self.system, self.frames = system, frames
        self.stride = system.stride

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Show the others' frames, as many as its own would be."""
        self.system.observe(self.frames[:, : frames.shape[1]], conditions)

    def carried(self) -> Tensor:
        """What the system carries, where it tells."""
        told: Tensor = self.system.carried()  # type: ignore[attr-defined]
        return told

    def step(self, conditions: Conditions) -> Tensor:
        """Let the system go on."""
        return self.system.step(conditions)


class Forgetful:
    """A system of others that forgets its context between the last frame shown and the first one made."""

    def __init__(self, system: Any) -> None:
        """`system` has `forget()` beside the face of a System."""
        self.system, self.stride = system, system.stride

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
        made: Tensor = self.system.step(conditions)
        return made


class Reconstruction:
    """Ceiling of a model on latents: the truth through its tokenizer and back. No such model can be sharper."""

    stride = 1

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
        return self.tokenizer.decode(self.tokenizer.encode(frame))


FLOORS: dict[str, Callable[[], System]] = {
    "copy_last": CopyLast,
    "context_mean": ContextMean,
    "nearest_pose": NearestPose,
}
"""Systems that need no training: two floors and, last, the oracle."""


class Chance:
    """Floor of a probe: it carries nothing."""

    stride = 1

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
