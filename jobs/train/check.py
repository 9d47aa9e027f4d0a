"""What a training's config asks that cannot be had, in words: of the data, the model, its memory and its batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

from longtake.errors import UserError
from longtake.jobs.latents import tokenizers
from longtake.jobs.train import normalise, watch
from longtake.jobs.train.config import DATASET, TrainConfig, WorldModelTraining
from longtake.models.description import PIXELS

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.models.config import ModelConfig
    from longtake.storage.store import Store

LATENT_REACH = 4.0
"""Standard deviations of latents that a sampler must be able to reach."""


def shape_problems(config: TrainConfig, dataset: Data, store: Store) -> list[str]:
    """Frames, or latents of them, that the model does not take."""
    model, problems, what = config.model, _kind_problems(config, dataset), f"frames of {dataset.name}"
    if problems:
        return problems
    height, width, channels = dataset.frame_shape
    if on_latents(config):
        what = f"latents of {dataset.name}"
        if config.tokenizer != DATASET:
            what = f"latents of tokenizer {config.tokenizer}"
            try:
                height, width, channels = tokenizers.latent_shape(store, config.tokenizer, dataset)
            except UserError as error:
                return list(error.lines)
        if (clip := config.model.clip) is not None and clip < LATENT_REACH:
            problems.append(f"model.clip: {clip:g} would cut {what}, of unit variance: set model.clip=null (no bound)")
    for field, here, needed in (
        ("height", model.height, height),
        ("width", model.width, width),
        ("channels", model.channels, channels),
    ):
        if here != needed:
            problems.append(f"model.{field}: {here}, but {what} have {needed}: set model.{field}={needed}")
    return problems


def _kind_problems(config: TrainConfig, dataset: Data) -> list[str]:
    """Pixels where latents are asked for, or the other way round."""
    latents = dataset.manifest.latents
    if isinstance(config, WorldModelTraining):
        if latents is None and config.tokenizer == DATASET:
            return [f"tokenizer: dataset, but frames of {dataset.name} are pixels: name one, or run `longtake encode`"]
        if latents is not None and config.tokenizer != DATASET:
            return [
                f"tokenizer: {config.tokenizer}, but {dataset.name} holds latents of tokenizer {latents.tokenizer}: "
                "set tokenizer=dataset"
            ]
    elif latents is not None:
        return [
            f"data.dataset: {dataset.name} holds latents; an autoencoder is trained on pixels: take {latents.dataset}"
        ]
    return []


def on_latents(config: TrainConfig) -> TypeGuard[WorldModelTraining]:
    """Whether a world model lives on the latents of an autoencoder."""
    return isinstance(config, WorldModelTraining) and config.tokenizer != PIXELS


def condition_problems(config: WorldModelTraining, dataset: Data) -> list[str]:
    """Actions and poses that the data does not have, or not so."""
    model, problems = config.model, []
    numbers, stride = dataset.action_dim * config.data.stride, config.data.stride
    kinds = model.condition_kinds
    if "actions" in kinds and model.action_dim != numbers:
        stacked = f", {stride} of them stacked" if stride > 1 else ""
        problems.append(
            f"model.action_dim: {model.action_dim}, but actions of {dataset.name} have {dataset.action_dim} numbers"
            f"{stacked}: set model.action_dim={numbers}"
        )
    if "actions" in kinds and model.actions == "discrete" and dataset.manifest.action_classes is None:
        problems.append(
            f"model.actions: discrete, but actions of {dataset.name} are numbers: set model.actions=continuous"
        )
    if not dataset.has_pose:
        if "pose" in kinds:
            problems.append(
                f"model.conditions: {_told(model)}, but {dataset.name} has no pose: set model.conditions=actions"
            )
        if config.data.clip != "forward":
            problems.append(
                f"data.clip: {config.data.clip}, but {dataset.name} has no pose, so a way back has no conditions: "
                "set data.clip=forward"
            )
    if config.data.clip != "forward" and {"actions", "time"} & set(kinds):
        problems.append(
            f"data.clip: {config.data.clip} goes with model.conditions=pose only (here {_told(model)}): actions "
            "recorded on the way there do not lead back"
        )
    return [*problems, *normalise.problems(config, dataset)]


def _told(model: ModelConfig) -> str:
    """The setting of its conditions, in words."""
    return model.conditions if isinstance(model.conditions, str) else ", ".join(model.conditions)


def memory_problems(config: WorldModelTraining) -> list[str]:
    """Settings of the carried memory that contradict each other or the model."""
    model, memory, block = config.model, config.memory, config.temporal_block
    chunk, problems = model.chunk or 1, []
    if config.bptt_blocks and not block:
        problems.append(f"bptt_blocks: {config.bptt_blocks} blocks of what length? set temporal_block too")
    for field, value in (("overlap", memory.overlap), ("carry_width", memory.carry_width)):
        if value and not block:
            problems.append(f"memory.{field}: {value}, but without blocks no memory is handed on: set temporal_block")
    if block and memory.overlap >= block:
        problems.append(f"memory.overlap: {memory.overlap} frames of blocks of {block}: at most {block - 1}")
    for field, frames in (("temporal_block", block or 0), ("memory.overlap", memory.overlap)):
        if frames % chunk:
            problems.append(f"{field}: {frames} frames are no whole number of the model's chunks of {chunk}")
    widths = {"memory.carry_width": memory.carry_width or 0, "memory.nested": max(memory.nested, default=0)}
    for field, width in widths.items():
        if width > model.d_state:
            problems.append(f"{field}: {width} dimensions, but model.d_state is {model.d_state}")
    if memory.nested and model.d_state not in memory.nested:
        problems.append(f"memory.nested: {memory.nested} leaves out the whole state: add model.d_state {model.d_state}")
    scans = [kind for layer in model.stack if (kind := layer.scan_class)]
    settings = {"carry_width": memory.carry_width, "nested": memory.nested, "regularise": memory.regularise}
    if not scans:
        problems += [f"memory.{field}: {value}, but no layer scans" for field, value in settings.items() if value]
    elif not any(kind.nests for kind in scans):
        cut = [field for field in ("carry_width", "nested") if settings[field]]
        problems += [f"memory.{f}: {settings[f]}, but no layer's state can be cut to fewer dimensions" for f in cut]
    if not model.causal:
        more: dict[str, object] = {
            "temporal_block": block,
            "memory.coherence": memory.coherence,
            "memory.regularise": memory.regularise,
            "memory.nested": memory.nested,
        }
        problems += [f"{f}: {v}, but a model with causal: false carries no memory" for f, v in more.items() if v]
    shortest = min(stage.frames for stage in config.data.curriculum)
    if memory.coherence and shortest // 2 + memory.coherence.free_frames >= shortest:
        problems.append(
            f"memory.coherence.free_frames: {memory.coherence.free_frames} after half a clip of {shortest} frames "
            f"leave none to predict: at most {shortest - shortest // 2 - 1}"
        )
    return problems


def init_problems(config: TrainConfig, store: Store) -> list[str]:
    """First weights that are not there or do not fit."""
    if config.init is None:
        return []
    from longtake.jobs.train import init_weights  # which needs torch

    return init_weights.problems(config, store)


def watch_problems(config: TrainConfig) -> list[str]:
    """Loggers that cannot be had here."""
    return watch.problems(config.watch)


def perceptual_problems(config: TrainConfig) -> list[str]:
    """A perceptual term without its net, or without pixels."""
    if config.perceptual is None:
        return []
    from longtake.models.perceptual.weights import MissingWeights, locate

    problems = []
    if on_latents(config):
        problems.append(
            f"perceptual: compares pixels, but this model lives on latents of {config.tokenizer}: leave it out"
        )
    try:
        locate(config.perceptual.net)
    except MissingWeights as error:
        problems.append(f"perceptual.net: {error}")
    return problems


def batch_problems(config: TrainConfig) -> list[str]:
    """Batches that cannot be shared evenly."""
    workers = max(1, config.workers)
    counts = range(min(config.min_workers or workers, workers), workers + 1)
    problems, ranks, numbers = _elastic_problems(config), math.lcm(*counts), " or ".join(map(str, counts))
    for number, stage in enumerate(config.data.curriculum):
        clips, left = divmod(config.data.frames_per_step, stage.frames)
        if left or clips % ranks or not clips:
            good = stage.frames * ranks * max(1, round(config.data.frames_per_step / stage.frames / ranks))
            problems.append(
                f"data.frames_per_step: {config.data.frames_per_step} frames are not the same whole number of clips "
                f"of {stage.frames} frames (curriculum.{number}) for each of {numbers} workers: "
                f"the nearest that fits is {good}"
            )
    if config.validation.clips % ranks:
        problems.append(f"validation.clips: {config.validation.clips} cannot be shared evenly by {numbers} workers")
    return problems


def _elastic_problems(config: TrainConfig) -> list[str]:
    if config.min_workers is None:
        return []
    if not config.workers:
        return [f"min_workers: {config.min_workers}, but workers: 0 trains in this process, without Ray: leave it out"]
    if config.min_workers > config.workers:
        return [f"min_workers: {config.min_workers}, but there are at most workers: {config.workers}"]
    return []
