"""What one training step minimises: a rank's clips in temporal blocks, with the memory carried between them.

Noise is drawn from (seed, step, place in the global batch), so that a resumed run, or one on another number of
workers, sees the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.diffusion import draw_dropped, draw_noise_levels, draw_null_context, loss_weights
from longtake.models.losses import Distance, Forward, diffusion_forcing_loss, weighted
from longtake.models.memory import Memory
from longtake.models.rollout import prefill, rollout
from longtake.models.state.monitor import StateBlowUpError, require_sound, state_loss
from longtake.models.world_model import Layer, WorldModel

if TYPE_CHECKING:
    from longtake.jobs.train.config import TrainConfig, WorldModelTraining


@dataclass(frozen=True)
class Batch:
    """Clips as the model takes them: frames (b, t, C, H, W), pixels or latents, and their conditions.

    slot: the place of each clip in the whole batch of the step. weight: the share that these clips are of it.
    """

    frames: Tensor
    conditions: Conditions
    slot: tuple[int, ...]
    weight: float

    @classmethod
    def whole(cls, frames: Tensor, conditions: Conditions) -> Batch:
        """All clips of a step."""
        return cls(frames, conditions, tuple(range(len(frames))), 1.0)

    @property
    def size(self) -> int:
        """Clips of the whole batch."""
        return round(len(self.slot) / self.weight)

    def between(self, start: int, stop: int) -> Batch:
        """Frames start..stop-1 of every clip."""
        return replace(self, frames=self.frames[:, start:stop], conditions=self.conditions.frames(start, stop))

    def begun_at(self, first: Tensor) -> Batch:
        """Every clip from its frame `first` (b) on; what was before that comes last, where it can tell nothing."""
        frames = self.frames.shape[1]
        order = (first[:, None] + torch.arange(frames, device=first.device)) % frames
        clips = torch.arange(len(first), device=first.device)[:, None]
        return replace(self, frames=self.frames[clips, order], conditions=self.conditions.taken(order))

    def clips(self, start: int, stop: int) -> Batch:
        """Clips start..stop-1."""
        slot = self.slot[start:stop]
        weight = self.weight * len(slot) / len(self.slot)
        return Batch(self.frames[start:stop], self.conditions.clips(start, stop), slot, weight)


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

    def split(self, clips: int) -> Iterator[Noised]:
        """The same, so many clips at a time."""
        for first in range(0, len(self.level), clips):
            at = slice(first, first + clips)
            yield Noised(self.batch.clips(first, first + clips), self.level[at], self.weight[at], self.noise[at])

    def at(self, level: Tensor) -> Noised:
        """The same frames and noise at given levels (b, t), with a plain mean over the noised ones as loss."""
        return replace(self, level=level, weight=(level > 0) / (level > 0).sum())

    def unweighted(self) -> Noised:
        """The same frames, read without loss."""
        return replace(self, weight=torch.zeros_like(self.weight))


class TrainingLoss:
    """What a rank minimises: the diffusion-forcing loss of its clips, and the terms that the config adds.

    `forward` is the call of `model`, or that of an engine around it, through which gradients flow. Ranks have shares
    of one size, and the mean of their losses is the loss of the whole batch.
    """

    def __init__(self, config: WorldModelTraining, model: WorldModel, forward: Forward) -> None:
        self.config, self.model, self.forward = config, model, forward
        self._distance = distance_of(config, model)

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        """The loss of this rank's clips, in parts that sum to it: one per stretch of truncated back-propagation.

        Frames are processed `temporal_block` at a time with the memory carried, which changes cost and not the loss;
        the memory is detached after every `bptt_blocks` of them, where a part ends.

        Raises:
            UserError: the state of a layer, or the loss, blew up.
        """
        config, noised = self.config, self.sample_noise(batch, step)
        memory = self._start_memory(batch.slot, step)
        frames = batch.frames.shape[1]
        block = config.temporal_block or frames
        stretch = block * (config.bptt_blocks or -(-frames // block))
        for first in range(0, frames, stretch):
            part = noised.level.new_zeros(())
            for start in range(first, min(first + stretch, frames), block):
                loss, memory = self._block_loss(noised, memory, start, min(start + block, frames))
                part = part + loss
            if memory is not None:
                self._require_sound(memory, step)
            if not part.isfinite():
                raise UserError(f"step {step}: the loss is {part.item()}; {_first_bad(self.model)}")
            yield part
            memory = memory.detach() if memory is not None else None
        coherence = config.memory.coherence
        if coherence is not None and step % coherence.every == 0:
            yield coherence.weight * self.coherence_loss(noised, step)

    def sample_noise(self, batch: Batch, step: int) -> Noised:
        """Noise levels, noise, weights and dropped conditions of the rank's clips."""
        config = self.config
        t = batch.frames.shape[1]
        noises, dropped = [], []
        generators = {slot: seeded(config.seed, step, slot) for slot in range(batch.size)}
        # Those of all ranks: the mean over the batch weighs its frames together, however ranks share them.
        levels, weights, first = self._levels(generators, t, step)
        for slot in batch.slot:
            generator = generators[slot]
            noises.append(torch.randn(batch.frames.shape[1:], generator=generator))
            dropped.append(draw_dropped(config.diffusion, 1, t, generator)[0])
        device = batch.frames.device
        mine = list(batch.slot)
        level, weight = levels[mine].to(device), (weights[mine] / batch.weight / weights.sum()).to(device)
        batch = batch.begun_at(first[mine].to(device)) if first.any() else batch
        conditions = batch.conditions.drop(torch.stack(dropped).to(device))
        noise = on_device(torch.stack(noises), device)
        return Noised(replace(batch, conditions=conditions), level, weight, noise)

    def _levels(
        self, generators: Mapping[int, torch.Generator], frames: int, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise levels and weights (b, t) of all slots, and the frame (b) that each clip begins with."""
        config, levels, first = self.config.diffusion, [], []
        for slot, generator in generators.items():
            first.append(draw_null_context(config, 1, frames, seeded(self.config.seed, step, slot, 3)))
            begun = bool(first[-1])
            shown = config.model_copy(update={"clean_prefix": 0.0}) if begun else config
            levels.append(draw_noise_levels(shown, 1, frames, generator))
        begins = torch.cat(first)
        wrapped = torch.arange(frames) >= frames - begins[:, None]  # what was before a clip's beginning, now at its end
        level = torch.cat(levels).masked_fill(wrapped, 1.0)
        weight = loss_weights(config, self.config.model.prediction, level).masked_fill(wrapped, 0.0)
        return level, weight, begins

    def clip_loss(self, noised: Noised, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        """Loss of some frames after those in the memory, and the memory after them."""
        return diffusion_forcing_loss(
            self.forward,
            self.config.model.prediction,
            noised.batch.frames,
            noised.batch.conditions,
            noised.level,
            noised.noise,
            noised.weight,
            memory,
            self._distance,
        )

    def held_out_loss(self, noised: Noised) -> tuple[Tensor, Memory | None]:
        """Loss of whole clips and the memory after them, as many at a time as a step trains on: what trains, fits."""
        config, frames = self.config, noised.level.shape[1]
        block, losses, memories, clips = config.temporal_block or frames, [], [], []
        for part in noised.split(max(1, config.data.frames_per_step // (frames * max(1, config.workers)))):
            memory: Memory | None = None
            for start in range(0, frames, block):
                loss, memory = self.clip_loss(part.between(start, min(start + block, frames)), memory)
                losses.append(loss)
            if memory is not None:
                memories.append(memory)
                clips.append(len(part.level))
        return torch.stack(losses).sum(), Memory.side_by_side(memories, clips) if memories else None

    def coherence_loss(self, noised: Noised, step: int) -> Tensor:
        """Prediction from a memory that holds frames of the model's own: the loss after free-running frames.

        The first half of each clip is context, the model goes on by itself for `free_frames` (without gradient), and is
        asked for the frames after them, all at noise level 1 where only memory and conditions help. Gradients flow
        through the reading of the context and of its own frames.
        """
        coherence, batch = self.config.memory.coherence, noised.batch
        assert coherence is not None
        context = batch.frames.shape[1] // 2
        free = context + coherence.free_frames
        generators = [seeded(self.config.seed, step, slot, 2) for slot in batch.slot]
        sampler = SamplerConfig(steps=coherence.sampler_steps)
        seen, ahead = batch.between(0, context), batch.between(context, free)
        memory = prefill(self.model, seen.frames, seen.conditions)
        own, _ = rollout(self.model, ahead.conditions, coherence.free_frames, memory, sampler, generators)
        shown = torch.cat([seen.frames, own, batch.frames[:, free:]], 1)
        level = torch.zeros_like(noised.level)
        level[:, free:] = 1.0
        asked_for = Noised(replace(batch, frames=shown), level, level / level.sum(), noised.noise)
        loss, _ = self.clip_loss(asked_for, None)
        return loss

    def _start_memory(self, slots: tuple[int, ...], step: int) -> Memory | None:
        """Nothing remembered; with a nested state, in as many dimensions as are drawn for each clip.

        Half of the clips train the whole state: dimensions that are rarely there would learn to do nothing.
        """
        widths = sorted(self.config.memory.nested)
        if not widths:
            return None
        drawn = []
        for slot in slots:
            generator = seeded(self.config.seed, step, slot, 1)
            whole = torch.rand((), generator=generator) < 0.5 or len(widths) == 1
            drawn.append(widths[-1] if whole else widths[int(torch.randint(len(widths) - 1, (), generator=generator))])
        of_clip = torch.tensor(drawn)
        layers = [cast(Layer, layer) for layer in self.model.layers]
        return self.model.empty_memory(
            len(slots), [of_clip.repeat_interleave(layer.scan.blocks if layer.scan else 1) for layer in layers]
        )

    def _block_loss(self, noised: Noised, memory: Memory | None, start: int, stop: int) -> tuple[Tensor, Memory | None]:
        """Loss of one temporal block, and the memory for the next one.

        With an overlap the memory that is handed on is that from before the block's last frames, which the next block
        reads again (without loss). With a carried width it keeps that many state dimensions; the rest starts from zero.
        """
        settings, frames = self.config.memory, noised.level.shape[1]
        again = min(settings.overlap, start)
        handed = stop if stop == frames else stop - settings.overlap
        if again:
            _, memory = self.clip_loss(noised.between(start - again, start).unweighted(), memory)
        loss, memory = self.clip_loss(noised.between(start, handed), memory)
        if handed < stop:
            loss = loss + self.clip_loss(noised.between(handed, stop), memory)[0]
        if memory is not None and settings.regularise:
            loss = loss + settings.regularise * state_loss(memory, settings.regularise_gain)
        if memory is not None and settings.carry_width and stop < frames:
            width = max(state.shape[-1] for _, state in memory.states)
            memory = memory.with_width(settings.carry_width).with_width(width)
        return loss, memory

    def _require_sound(self, memory: Memory, step: int) -> None:
        try:
            require_sound(memory, self.config.memory.limit)
        except StateBlowUpError as error:
            raise UserError(f"step {step}: {error}") from error


def on_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the CPU on a device; a card fetches them while the CPU goes on."""
    if torch.device(device).type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def _first_bad(model: WorldModel) -> str:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the first parameter that is not: {name}"
    return "all parameters are too: look at the data, or lower the learning rate"


def distance_of(config: TrainConfig, model: nn.Module) -> Distance | None:
    """The perceptual term of a training, on the model's device; None: it has none."""
    if config.perceptual is None:
        return None
    from longtake.models.perceptual.lpips import Lpips

    net = Lpips(config.perceptual.net).to(next(model.parameters()).device)
    return weighted(net, config.perceptual.weight)


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for a tuple of numbers."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
