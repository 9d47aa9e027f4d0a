"""A world model in training: its loss, its held-out measures and pictures, and what its checkpoints say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.jobs.latents import tokenizers
from longtake.jobs.train import normalise
from longtake.jobs.train.loss import Batch, Noised, TrainingLoss, seeded
from longtake.jobs.train.plan import build_plan
from longtake.jobs.train.sample_images import make_drawing
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
        self._config = config
        model.recompute = config.recompute
        self._edge = Edge(config, dataset, tokenizers.of_training(context, config, checkpoint), context.device)
        self._objective = TrainingLoss(config, model, engine)
        self._draw = None
        if config.samples:
            clips = held_out(context, config, self._edge)
            self._draw = make_drawing(context, config.samples, clips.batch, model, self._edge.tokenizer)
        self._validate = make_validation(context, config, model, self._edge)

    def losses(self, clips: ClipBatch, step: int) -> Iterator[Tensor]:
        """See `TrainingLoss.losses`."""
        return self._objective.losses(self._edge.batch(clips), step)

    def validate(self) -> dict[str, float]:
        """See `make_validation`."""
        return self._validate()

    def save_samples(self, step: int) -> None:
        """Every `samples.every` steps, a rollout beside the truth."""
        if self._config.samples and self._draw and step % self._config.samples.every == 0:
            self._draw(step)

    def write(self, folder: Path) -> None:
        """The tokenizer, whole, and the description."""
        config, edge = self._config, self._edge
        edge.tokenizer.save(folder / TOKENIZER)
        described = WorldModelDescription(
            model=config.model,
            trained_frames=max(stage.frames for stage in config.data.curriculum),
            tokenizer=edge.tokenizer.kind,
            stride=config.data.stride,
            shown_context=config.diffusion.null_context < 1,
            normalisation=edge.normalisation,
        )
        described.write(folder)


def make_validation(
    context: Context, config: WorldModelTraining, model: WorldModel, edge: Edge
) -> Callable[[], dict[str, float]]:
    """A function that measures the held-out loss, and the state of each layer after the clips.

    The clips are as long as the last stage's; for each other length of the curriculum also the loss on such.
    """
    objective = TrainingLoss(config, model, model)
    stages = {stage.frames: number for number, stage in enumerate(config.data.curriculum)}
    last = config.data.curriculum[-1].frames
    clips = held_out(context, config, edge)
    others = {frames: held_out(context, config, edge, stage) for frames, stage in stages.items() if frames != last}
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


def held_out(context: Context, config: WorldModelTraining, edge: Edge, stage: int = -1) -> Noised:
    """This rank's clips of the `val` split, as long as a stage's: always the same, with the same noise and level."""
    plan = build_plan(config, edge.dataset, "val", stage)
    share = rank_slice(plan.batch(0), context.rank, context.world)
    batch = edge.batch(load_clips(edge.dataset, share, labels=normalise.labels_of(config)))
    b, t = batch.frames.shape[:2]
    noise = torch.stack([torch.randn(batch.frames.shape[1:], generator=seeded(0, 0, slot)) for slot in batch.slot])
    level = torch.zeros(b, t, device=context.device)
    level[:, t // 2 :] = config.validation.noise_level
    return Noised(batch, level, (level > 0) / (level > 0).sum(), noise.to(context.device))


class Edge:
    """Where data becomes what the model sees: its tokenizer, and its conditions in the scale of its training data."""

    def __init__(self, config: WorldModelTraining, dataset: Data, tokenizer: Tokenizer, device: str) -> None:
        self.dataset, self.tokenizer, self._device = dataset, tokenizer, device
        self.normalisation = normalise.normalisation_of(config, dataset)
        self._stride = config.data.stride

    def batch(self, clips: ClipBatch) -> Batch:
        """Decoded clips → what the model sees, on the device."""
        frames = torch.from_numpy(clips.frames).to(self._device)
        conditions = normalise.conditions_of(clips, self.dataset, self.normalisation, self._stride)
        return Batch(
            as_latents(frames) if frames.is_floating_point() else self.tokenizer.encode(frames),
            conditions.to(self._device),
            tuple(clips.slot.tolist()),
            clips.weight,
        )
