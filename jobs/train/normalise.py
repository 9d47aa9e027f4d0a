"""What a training tells its model of the data, and in which scale: settings and statistics → a `Normalisation`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.datasets.episode import LABEL
from longtake.datasets.statistics import DISTANCE, Statistics, between_quantiles, standard
from longtake.errors import UserError
from longtake.models.normalisation import Affine, Normalisation

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.jobs.train.config import WorldModelTraining
    from longtake.models.conditions import Conditions
    from longtake.streaming.clips import ClipBatch

CELLS_ACROSS = 8.0
"""Cells from an episode's first place to its far ones, where the data's own scale is taken: as in the mazes that the
wavelengths of places were made for."""
SCALES = {"standard": standard, "quantiles": between_quantiles}


def normalisation_of(config: WorldModelTraining, dataset: Data) -> Normalisation:
    """What a checkpoint of this training will carry. Raises UserError where statistics are needed and not there."""
    settings, kinds, known = config.data.conditions, config.model.condition_kinds, dataset.statistics
    fields: dict[str, Any] = {}
    if "actions" in kinds and settings.actions != "as_recorded":
        fields["actions"] = _affine(settings.actions, known, "actions", dataset)
    if "state" in kinds and settings.state is not None:
        fields["state_label"] = settings.state
        if settings.state_scale != "as_recorded":
            fields["state"] = _affine(settings.state_scale, known, LABEL + settings.state, dataset)
    if "pose" in kinds and settings.cell != 1:
        fields["cell"] = settings.cell if isinstance(settings.cell, float) else _cell(known, dataset)
    if "task" in kinds:
        fields["tasks"] = dataset.tasks
    return Normalisation(**fields)


def _affine(scale: str, known: Statistics | None, name: str, dataset: Data) -> Affine:
    if known is None or name not in known:
        raise UserError(f"data.conditions: dataset {dataset.name} has no statistics of {name}: {_why(known)}")
    offset, spread = SCALES[scale](known[name])
    return Affine(offset=offset, scale=spread)


def _cell(known: Statistics | None, dataset: Data) -> float:
    if known is None or DISTANCE not in known:
        raise UserError(f"data.conditions.cell: dataset {dataset.name} has no statistics of its pose: {_why(known)}")
    return max(known[DISTANCE].high[0] / CELLS_ACROSS, 1e-9)


def _why(known: Statistics | None) -> str:
    return "make it again with this version" if known is None else "discrete actions and episodes without it have none"


def labels_of(config: WorldModelTraining) -> tuple[str, ...]:
    """Labels of the dataset that clips have to carry."""
    settings = config.data.conditions.state
    return (settings,) if settings is not None and "state" in config.model.condition_kinds else ()


def conditions_of(clips: ClipBatch, dataset: Data, normalisation: Normalisation, stride: int) -> Conditions:
    """What a model is told of loaded clips."""
    from longtake.models.conditions import from_recording  # which needs torch

    episodes, (count, frames) = clips.episode.tolist(), clips.frames.shape[:2]
    fps = np.array([dataset.fps_of(episode) for episode in episodes])
    label = normalisation.state_label
    return from_recording(
        normalisation,
        clips.actions,
        clips.led,
        pose=clips.pose,
        state=None if label is None else clips.labels[label].astype(np.float32).reshape(count, frames, -1),
        tasks=[dataset.task_of(episode) for episode in episodes] if normalisation.tasks else None,
        time=(np.arange(frames) * stride / fps[:, None]).astype(np.float32),
    )


def problems(config: WorldModelTraining, dataset: Data) -> Iterator[str]:
    """Conditions that the data does not have, or not so: one line per reason."""
    model, settings, kinds = config.model, config.data.conditions, config.model.condition_kinds
    if "pose" in kinds and dataset.has_pose and model.pose != dataset.pose_kind:
        yield f"model.pose: {model.pose}, but poses of {dataset.name} are {dataset.pose_kind}: set model.pose to that"
    yield from _state_problems(config, dataset)
    if "task" in kinds and not dataset.tasks:
        yield f"model.conditions: task, but no episode of {dataset.name} says what its task is (`task` in its metadata)"
    elif "task" in kinds and model.tasks != len(dataset.tasks):
        count = len(dataset.tasks)
        yield f"model.tasks: {model.tasks}, but {dataset.name} has {count} tasks: set model.tasks={count}"
    if "actions" in kinds and model.actions == "discrete" and settings.actions != "as_recorded":
        yield f"data.conditions.actions: {settings.actions}, but classes have no scale: leave it out"
    try:
        normalisation_of(config, dataset)
    except UserError as error:
        yield from error.lines


def _state_problems(config: WorldModelTraining, dataset: Data) -> Iterator[str]:
    settings, wanted = config.data.conditions, "state" in config.model.condition_kinds
    if not wanted:
        if settings.state is not None:
            yield f"data.conditions.state: {settings.state}, but the model is told no state: add it to model.conditions"
        return
    if settings.state is None:
        yield "data.conditions.state: is required where model.conditions has state: the name of a label of the dataset"
        return
    try:
        shape, dtype = dataset.label_kind(settings.state)
    except UserError as error:
        yield from (f"data.conditions.state: {line}" for line in error.lines)
        return
    width = int(np.prod(shape, dtype=np.int64))
    if np.dtype(dtype).kind not in "biuf" or len(shape) > 1:
        yield f"data.conditions.state: {settings.state} is {dtype} {shape} per frame, expected a number or a vector"
    elif width != config.model.state_dim:
        yield (
            f"model.state_dim: {config.model.state_dim}, but {settings.state} of {dataset.name} has {width} numbers: "
            f"set model.state_dim={width}"
        )


def warning(config: WorldModelTraining, dataset: Data) -> str | None:
    """A line where places lie far from the scale that their features are made for; None where they do not."""
    known = dataset.statistics
    if "pose" not in config.model.condition_kinds or not dataset.has_pose or known is None or DISTANCE not in known:
        return None
    reach, cell = known[DISTANCE].high[0], normalisation_of(config, dataset).cell
    if reach == 0 or 1 / 8 <= reach / cell / CELLS_ACROSS <= 8:
        return None
    return (
        f"places go {reach:.3g} units from an episode's start, {reach / cell:.3g} cells: features of places are made "
        f"for about {CELLS_ACROSS:g}: set data.conditions.cell=data"
    )
