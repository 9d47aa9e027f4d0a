"""What one training step minimises: a rank's clips in temporal blocks, with the memory carried between them.

Noise is drawn from (seed, step, place in the global batch), so that a resumed run, or one on another number of
workers, sees the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longtake.errors import UserError
from models.conditions import Conditions
from models.config import SamplerConfig
from models.diffusion import draw_dropped, draw_noise_levels, loss_weights
from models.losses import Forward, diffusion_forcing_loss
from models.memory import Memory
from models.rollout import prefill, rollout
from models.state import StateBlowUpError, require_sound, state_loss
from models.world_model import WorldModel

if TYPE_CHECKING:
    from jobs.train import TrainConfig


@dataclass(frozen=True)
class Batch:
    """Clips as the model takes them: frames (b, t, C, H, W) and their conditions."""

    frames: Tensor
    conditions: Conditions

    def between(self, start: int, stop: int) -> Batch:
        """Frames start..stop-1 of every clip."""
        return Batch(self.frames[:, start:stop], self.conditions.frames(start, stop))


@dataclass(frozen=True)
class Noised:
    """A batch with its draw: noise level and weight of the loss (b, t) per frame, unit noise like the frames."""

    batch: Batch
    level: Tensor
    weight: Tensor
    noise: Tensor

    def between(self, start: int, stop: int) -> Noised:
        """Frames start..stop-1 of every clip."""
        at = slice(start, stop)
        return Noised(self.batch.between(start, stop), self.level[:, at], self.weight[:, at], self.noise[:, at])

    def unweighted(self) -> Noised:
        """The same frames, read without loss."""
        return replace(self, weight=torch.zeros_like(self.weight))


def losses(
    forward: Forward, model: WorldModel, config: TrainConfig, batch: Batch, step: int, rank: int
) -> Iterator[Tensor]:
    """The loss of this rank's clips, in parts that sum to it: one per stretch of truncated back-propagation.

    Frames are processed `temporal_block` at a time with the memory carried, which changes cost and not the loss; the
    memory is detached after every `bptt_blocks` of them, where a part ends. `forward` is the call of the model, or of
    an engine around it, through which gradients flow.

    Raises:
        UserError: the state of a layer, or the loss, blew up.
    """
    noised = draw(config, batch, step, rank)
    memory = start_memory(config, model, len(batch.frames), step)
    frames = batch.frames.shape[1]
    block = config.temporal_block or frames
    stretch = block * (config.bptt_blocks or -(-frames // block))
    for first in range(0, frames, stretch):
        part = noised.level.new_zeros(())
        for start in range(first, min(first + stretch, frames), block):
            loss, memory = block_loss(forward, config, noised, memory, start, min(start + block, frames))
            part = part + loss
        if memory is not None:
            _require_sound(memory, config, step)
        if not part.isfinite():
            raise UserError(
                f"loss: {part.item()} at step {step}, and every layer's state is finite; {_first_bad(model)}"
            )
        yield part
        memory = memory.detach() if memory is not None else None
    asked = config.memory.coherence
    if asked is not None and step % asked.every == 0:
        yield asked.weight * coherence_loss(forward, model, config, noised, step, rank)


def draw(config: TrainConfig, batch: Batch, step: int, rank: int) -> Noised:
    """Noise levels, noise, weights and dropped conditions of a rank's clips."""
    b, t = batch.frames.shape[:2]
    levels, noises, dropped = [], [], []
    for slot in range(rank * b, (rank + 1) * b):
        generator = seeded(config.seed, step, slot)
        levels.append(draw_noise_levels(config.diffusion, 1, t, generator)[0])
        noises.append(torch.randn(batch.frames.shape[1:], generator=generator))
        dropped.append(draw_dropped(config.diffusion, 1, t, generator)[0])
    device = batch.frames.device
    level = torch.stack(levels).to(device)
    weight = loss_weights(config.diffusion, config.model.prediction, level)
    conditions = batch.conditions.drop(torch.stack(dropped).to(device))
    return Noised(Batch(batch.frames, conditions), level, weight / weight.sum(), torch.stack(noises).to(device))


def start_memory(config: TrainConfig, model: WorldModel, clips: int, step: int) -> Memory | None:
    """Nothing remembered; with a nested state, in as many dimensions as this step is drawn to train."""
    widths = config.memory.nested
    if not widths:
        return None
    drawn = torch.randint(len(widths), (), generator=seeded(config.seed, step, 0, 1)).item()
    return model.empty_memory(clips, widths[int(drawn)])


def block_loss(
    forward: Forward, config: TrainConfig, noised: Noised, memory: Memory | None, start: int, stop: int
) -> tuple[Tensor, Memory | None]:
    """Loss of one temporal block, and the memory for the next one.

    With an overlap the memory that is handed on is that from before the block's last frames, which the next block
    reads again (without loss). With a carried width it keeps that many state dimensions, and the rest starts from zero.
    """
    settings, frames = config.memory, noised.level.shape[1]
    again = min(settings.overlap, start)
    handed = stop if stop == frames else stop - settings.overlap
    if again:
        _, memory = clip_loss(forward, config, noised.between(start - again, start).unweighted(), memory)
    loss, memory = clip_loss(forward, config, noised.between(start, handed), memory)
    if handed < stop:
        rest, _ = clip_loss(forward, config, noised.between(handed, stop), memory)
        loss = loss + rest
    if memory is not None and settings.regularise:
        loss = loss + settings.regularise * state_loss(memory, settings.regularise_gain)
    if memory is not None and settings.carry_width and stop < frames:
        width = max(part.width for layer in memory.layers for part in layer.ssm)
        memory = memory.with_width(settings.carry_width).with_width(width)
    return loss, memory


def clip_loss(
    forward: Forward, config: TrainConfig, noised: Noised, memory: Memory | None
) -> tuple[Tensor, Memory | None]:
    """Diffusion-forcing loss of some frames after those in the memory."""
    return diffusion_forcing_loss(
        forward,
        config.model.prediction,
        noised.batch.frames,
        noised.batch.conditions,
        noised.level,
        noised.noise,
        noised.weight,
        memory,
    )


def coherence_loss(
    forward: Forward, model: WorldModel, config: TrainConfig, noised: Noised, step: int, rank: int
) -> Tensor:
    """Prediction from a memory that holds frames of the model's own: the loss after `free_frames` free-running frames.

    The first half of each clip is context, the model goes on by itself for `free_frames` (without gradient), and is
    asked for the frames after them, all at noise level 1 where only memory and conditions help. Gradients flow through
    the reading of the context and of its own frames.
    """
    asked = config.memory.coherence
    assert asked is not None
    batch = noised.batch
    clips, frames = noised.level.shape
    context = frames // 2
    free = context + asked.free_frames
    slots = range(rank * clips, (rank + 1) * clips)
    generators = [seeded(config.seed, step, slot, 2) for slot in slots]
    sampler = SamplerConfig(steps=asked.sampler_steps)
    memory = prefill(model, batch.frames[:, :context], batch.conditions.frames(0, context))
    own, _ = rollout(model, batch.conditions.frames(context, free), asked.free_frames, memory, sampler, generators)
    shown = torch.cat([batch.frames[:, :context], own, batch.frames[:, free:]], 1)
    level = torch.zeros_like(noised.level)
    level[:, free:] = 1.0
    weight = level / level.sum()
    loss, _ = clip_loss(forward, config, Noised(Batch(shown, batch.conditions), level, weight, noised.noise), None)
    return loss


def _require_sound(memory: Memory, config: TrainConfig, step: int) -> None:
    try:
        require_sound(memory, config.memory.limit)
    except StateBlowUpError as error:
        raise UserError(f"step {step}: {error}") from error


def _first_bad(model: WorldModel) -> str:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the first parameter that is not: {name}"
    return "all parameters are too: look at the data, or lower the learning rate"


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for a tuple of numbers."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
