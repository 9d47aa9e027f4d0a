"""What an evaluation worker runs: one cell of the grid → rows of the `scores` table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.datasets.dataset import Dataset
from longtake.evals.baselines import BASELINES, PROBED
from longtake.evals.clip import build_clip
from longtake.evals.controls import Reconstruction, SwappedContext, WipedMemory
from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.scoring import episode_seed, score
from longtake.evals.systems import ModelSystem, System
from longtake.evals.task import STRANGER, EvalClip, Rows
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.evaluate.check import asked_episodes
from longtake.jobs.evaluate.set_metrics import keep_features
from longtake.jobs.latents import pictures
from longtake.models.checkpoint import load_model, load_model_tokenizer
from longtake.models.conditions import Conditions, from_recording
from longtake.models.description import read_world_model
from longtake.models.exported import MODEL
from longtake.models.normalisation import Normalisation
from longtake.models.rollout import LongContextWarning
from longtake.models.tokenizer import Tokenizer
from longtake.models.world_model import WorldModel
from longtake.motion import in_space, relative_pose
from longtake.storage.store import open_store
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints
from longtake.training.engine import autocast


def score_cell(cell: ScoreCell) -> list[dict[str, Any]]:
    """Score one system on the cell's episodes; deterministic in the cell."""
    torch.set_num_threads(1)  # sums are bitwise repeatable for a fixed number
    questions = [read_clip(cell, episode) for episode in cell.episodes]
    with no_repeated_warnings():
        return [{**cell.label, **row} for row in _rows(cell, questions)]


@contextmanager
def no_repeated_warnings() -> Iterator[None]:
    """Of streams beyond training the rows say so, and the evaluation has said it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LongContextWarning)
        yield


def _rows(cell: ScoreCell, questions: list[EvalClip]) -> Rows:
    keep = partial(keep_features, open_store(cell.store), cell)
    return score(partial(build_system, cell), cell.protocol, questions, conditions_of(cell, questions), keep)


def read_clip(cell: ScoreCell, episode: int) -> EvalClip:
    """The clip of one episode, or of the walks of its world."""
    protocol, first = cell.protocol, cell.protocol.start
    dataset, label_names = open_store(cell.store).dataset(cell.dataset), TASKS[protocol.task].labels(protocol)
    if (state := normalisation_of(cell).state_label) is not None:
        label_names = (*label_names, state)
    pieces = [
        dataset.read(walk, first, first + frames, labels=label_names)
        for walk, frames in zip(_walks(protocol, dataset, episode), protocol.spans, strict=True)
    ]
    frames = pictures.shown(dataset, np.concatenate([piece.frames for piece in pieces]))
    poses = [piece.pose for piece in pieces if piece.pose is not None]
    actions = dataset.action_vectors(np.concatenate([piece.actions for piece in pieces]))
    labels = {name: np.concatenate([piece.labels[name] for piece in pieces]) for name in label_names}
    pose = in_space(np.concatenate(poses), dataset.pose_kind) if poses else None
    return build_clip(protocol, episode, frames, pose, actions, labels, dataset.task_of(episode))


def _walks(protocol: Protocol, dataset: Dataset, episode: int) -> list[int]:
    """The episodes that the clip of an episode lies in."""
    if len(protocol.spans) == 1:
        return [episode]
    episodes = asked_episodes(protocol, dataset)
    walks: list[int] = episodes.walks[episodes.episode == episode].iloc[0]
    return walks


def conditions_of(cell: ScoreCell, questions: list[EvalClip]) -> Conditions:
    """Conditions of all frames as the cell's model is told them, poses relative to each clip's first frame."""
    dataset, normalisation = open_store(cell.store).dataset(cell.dataset), normalisation_of(cell)
    poses = [relative_pose(question.pose, dataset.pose_kind) for question in questions if question.pose is not None]
    seconds = np.arange(len(questions[0].actions)) * (cell.protocol.stride or 1) / dataset.manifest.fps
    return from_recording(
        normalisation,
        np.stack([question.actions for question in questions]),
        np.stack([question.led for question in questions if question.led is not None]),
        pose=np.stack(poses) if poses else None,
        state=_states(questions, normalisation.state_label),
        tasks=[question.goal for question in questions] if normalisation.tasks else None,
        time=np.tile(seconds.astype(np.float32), (len(questions), 1)),
    )


def _states(questions: Sequence[EvalClip], label: str | None) -> NDArray[np.float32] | None:
    if label is None:
        return None
    states = np.stack([question.labels[label] for question in questions]).astype(np.float32)
    return states.reshape(*states.shape[:2], -1)


@lru_cache(maxsize=4)
def _normalisation(store: str, run: str, step: int) -> Normalisation:
    """How a run's model is told what was recorded, as its checkpoint says."""
    with checkpoints.opened(open_store(store), run, step, MODEL) as folder:
        return read_world_model(folder).normalisation


def normalisation_of(cell: ScoreCell) -> Normalisation:
    """How the cell's system is told what was recorded: as it is, where it is none of our models."""
    if cell.run == NO_RUN or cell.make is not None:
        return Normalisation()
    return _normalisation(cell.store, cell.run, cell.step)


def build_system(cell: ScoreCell, questions: Sequence[EvalClip]) -> System:
    """A floor by its name, the model of the cell's checkpoint, or its tokenizer, which is shown the truth."""
    seeds = [episode_seed(cell.protocol, question.episode) for question in questions]
    system: System
    if cell.run == NO_RUN:
        system = {**BASELINES, **PROBED}[cell.system.removesuffix(STRANGER)]()
    elif cell.make is not None:
        external = cell.make(seeds)
        system = WipedMemory(external) if cell.variant == "wiped" else external
    else:
        model, tokenizer = read_model(cell.store, cell.run, cell.step, cell.device, cell.protocol.precision)
        if cell.variant == "reconstruction":
            truth = np.stack([question.frames[cell.protocol.context :] for question in questions])
            return Reconstruction(tokenizer, torch.from_numpy(truth).to(cell.device))
        system = ModelSystem(model, tokenizer, cell.protocol.sampler, seeds, wiped=cell.variant == "wiped")
    if cell.variant == "stranger":
        after = dict(zip(cell.episodes, cell.strangers, strict=True))
        others = [read_clip(cell, after[q.episode]).frames[: cell.protocol.context] for q in questions]
        return SwappedContext(system, torch.from_numpy(np.stack(others)))
    return system


@lru_cache(maxsize=4)
def read_model(
    store: str, run: str, step: int, device: str = "cpu", precision: Literal["autocast"] | None = None
) -> tuple[WorldModel, Tokenizer]:
    """A run's model at a checkpoint, and its tokenizer, on a device; kept by the worker for its next cells."""
    with checkpoints.opened(open_store(store), run, step, MODEL) as folder:
        model, tokenizer = load_model(folder).to(device), load_model_tokenizer(folder, device)
    if precision is not None:
        model.forward = autocast(device)(model.forward)  # type: ignore[method-assign]
    return model, tokenizer
