"""A world model in training: its loss, its held-out measures and pictures, and what its checkpoints say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.jobs.latents import tokenizers
from longtake.jobs.train.loss import Batch, Noised, TrainingLoss, seeded
from longtake.jobs.train.plan import build_plan
from longtake.jobs.train.sample_images import make_drawing
from longtake.models.conditions import Conditions
from longtake.models.description import WorldModelDescription
from longtake.models.exported import TOKENIZER
from longtake.models.state.monitor import state_statistics
from longtake.models.tokenizer import Tokenizer, as_latents
from longtake.models.world_model import WorldModel
from longtake.streaming.clips import ClipBatch, load_clips
from longtake.streaming.plan import rank_slice

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.jobs.train.config import WorldModelTraining
    from longtake.training.context import Context
    from longtake.training.engine import Engine


class WorldModelLearner:
    """See `loop.Learner`."""

    def __init__(
        self,
        context: Context,
        config: WorldModelTraining,
        dataset: Data,
        model: WorldModel,
        engine: Engine,
        checkpoint: Path | None,
    ) -> None:
        self._config, self._device = config, context.device
        model.recompute = config.recompute
        self._tokenizer = tokenizers.of_training(context, config, checkpoint)
        self._objective = TrainingLoss(config, model, engine)
        self._draw = None
        if config.samples:
            clips = held_out(context, config, dataset, self._tokenizer)
            self._draw = make_drawing(context, config.samples, clips.batch, model, self._tokenizer)
        self._validate = make_validation(context, config, dataset, model, self._tokenizer)

    def losses(self, clips: ClipBatch, step: int) -> Iterator[Tensor]:
        """See `TrainingLoss.losses`."""
        return self._objective.losses(to_batch(clips, self._device, self._tokenizer), step)

    def validate(self) -> dict[str, float]:
        """See `make_validation`."""
        return self._validate()

    def save_samples(self, step: int) -> None:
        """Every `samples.every` steps, a rollout beside the truth."""
        if self._config.samples and self._draw and step % self._config.samples.every == 0:
            self._draw(step)

    def write(self, folder: Path) -> None:
        """The tokenizer, whole, and the description."""
        config = self._config
        self._tokenizer.save(folder / TOKENIZER)
        described = WorldModelDescription(
            model=config.model,
            trained_frames=max(stage.frames for stage in config.data.curriculum),
            tokenizer=self._tokenizer.kind,
            stride=config.data.stride,
            shown_context=config.diffusion.null_context < 1,
        )
        described.write(folder)


def make_validation(
    context: Context, config: WorldModelTraining, dataset: Data, model: WorldModel, tokenizer: Tokenizer
) -> Callable[[], dict[str, float]]:
    """A function that measures the held-out loss, and the state of each layer after the clips.

    The clips are as long as the last stage's; for each other length of the curriculum also the loss on such.
    """
    objective = TrainingLoss(config, model, model)
    stages = {stage.frames: number for number, stage in enumerate(config.data.curriculum)}
    last = config.data.curriculum[-1].frames
    clips = held_out(context, config, dataset, tokenizer)
    others = {
        frames: held_out(context, config, dataset, tokenizer, stage)
        for frames, stage in stages.items()
        if frames != last
    }
    half = last // 2 // (config.model.chunk or 1) * (config.model.chunk or 1)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        loss, memory = objective.held_out_loss(clips)
        numbers = {"val_loss": loss.item()}
        for frames, noised in others.items():
            numbers[f"val_loss.{frames}"] = objective.held_out_loss(noised)[0].item()
        states = state_statistics(memory) if memory is not None else {}
        for layer, statistics in states.items():
            numbers |= {f"state_{name}.{layer}": value for name, value in asdict(statistics).items()}
        if states and half:
            _, before = objective.held_out_loss(clips.between(0, half).unweighted())
            assert before is not None
            grown = [states[layer].std / max(early.std, 1e-9) for layer, early in state_statistics(before).items()]
            numbers["state_drift"] = sum(grown) / len(grown) - 1
        return context.mean(**numbers)

    return validate


def held_out(
    context: Context, config: WorldModelTraining, dataset: Data, tokenizer: Tokenizer, stage: int = -1
) -> Noised:
    """This rank's clips of the `val` split, as long as a stage's: always the same, with the same noise and level."""
    plan = build_plan(config, dataset, "val", stage)
    share = rank_slice(plan.batch(0), context.rank, context.world)
    clips = load_clips(dataset, share)
    batch = to_batch(clips, context.device, tokenizer)
    b, t = batch.frames.shape[:2]
    noise = torch.stack([torch.randn(batch.frames.shape[1:], generator=seeded(0, 0, slot)) for slot in batch.slot])
    level = torch.zeros(b, t, device=context.device)
    level[:, t // 2 :] = config.validation.noise_level
    return Noised(batch, level, (level > 0) / (level > 0).sum(), noise.to(context.device))


def to_batch(clips: ClipBatch, device: str, tokenizer: Tokenizer) -> Batch:
    """Decoded clips → what the model sees, on the device."""
    pose = clips.pose
    frames = torch.from_numpy(clips.frames).to(device)
    return Batch(
        as_latents(frames) if frames.is_floating_point() else tokenizer.encode(frames),
        Conditions(
            pose=None if pose is None else torch.from_numpy(pose).to(device),
            actions=torch.from_numpy(clips.actions).to(device),
        ),
        tuple(clips.slot.tolist()),
        clips.weight,
    )
