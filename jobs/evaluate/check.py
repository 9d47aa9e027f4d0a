"""Why a protocol cannot be asked of a dataset or of a model: everything that is told before an evaluation starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from longtake.datasets import worlds
from longtake.datasets.dataset import DREAMT
from longtake.datasets.episode import LABEL
from longtake.errors import unknown
from longtake.jobs.evaluate import set_metrics
from longtake.jobs.latents import pictures

if TYPE_CHECKING:
    import pandas as pd

    from longtake.datasets.dataset import Dataset
    from longtake.evals.protocol import Protocol
    from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
    from longtake.storage.store import Store


def asked_episodes(protocol: Protocol, dataset: Dataset) -> pd.DataFrame:
    """What can be asked of a split, in the order of the index: episode, length, and walks, the episodes of a clip.

    A clip lies in one episode, or in the walks of one world, of which it is called after the last.
    """
    if len(protocol.spans) > 1:
        return worlds.walks(dataset, protocol.split, len(protocol.spans))
    episodes = dataset.episodes(protocol.split)
    return episodes.assign(walks=episodes.episode.map(lambda episode: [episode]))


def protocol_problems(protocol: Protocol, dataset: Dataset) -> list[str]:
    """Why a dataset cannot serve a protocol: one line per reason."""
    from longtake.evals.registry import TASKS

    task, problems = TASKS[protocol.task], []
    if DREAMT in dataset.manifest.recipe:
        run = dataset.manifest.recipe[DREAMT]["run"]
        problems.append(
            f"{protocol.task}: dataset {dataset.name} was dreamt by run {run}: it is no truth to compare with"
        )
    if task.why_pose and not dataset.has_pose:
        problems.append(f"{protocol.task}: dataset {dataset.name} has no pose; {task.why_pose}")
    try:
        need = protocol.start + max(protocol.spans)
    except ValueError as error:
        return [*problems, f"{protocol.task}.{error}"]
    lacking = list(_label_problems(protocol, dataset))
    problems += lacking
    episodes = asked_episodes(protocol, dataset)
    if len(episodes) < protocol.scored:
        walks = len(protocol.spans)
        of = f" worlds with {walks} walks" if walks > 1 else ""
        of += f" (collect them with --set walks={walks})" if of and episodes.empty else ""
        problems.append(
            f"{protocol.task}.episodes: {protocol.scored} asked for, "
            f"but split {protocol.split} of {dataset.name} has {len(episodes)}{of}"
        )
    short = episodes.head(protocol.scored)
    short = short[short.length < need]
    if len(short):
        problems.append(
            f"{protocol.task}: needs {need} frames of an episode (start {protocol.start}, context {protocol.context}, "
            f"horizon {protocol.horizon}), but {len(short)} of {dataset.name} are shorter, "
            f"the shortest, episode {short.sort_values('length').episode.iloc[0]}, has {short.length.min()}"
        )
    elif not lacking:
        problems += _unusable(protocol, dataset, episodes)
    metrics = _metric_problems(protocol, pictures.frame_shape(dataset)[:2])
    return problems + [f"{protocol.task}.metrics: {problem}" for problem in metrics]


def _label_problems(protocol: Protocol, dataset: Dataset) -> Iterator[str]:
    """Why the labels that a task needs cannot be had of a dataset."""
    from longtake.evals.registry import TASKS

    specs = {spec.name.removeprefix(LABEL): spec for spec in dataset.manifest.arrays if spec.name.startswith(LABEL)}
    task = TASKS[protocol.task]
    field, more = task.label_field or ("", ())
    where = f"{protocol.task}.{field}" if field else protocol.task
    for label in task.labels(protocol):
        if label not in specs:
            yield f"{where}: {unknown(f'label of {dataset.name}', label, [*more, *specs])}"
        elif specs[label].shape or np.dtype(specs[label].dtype).kind not in "biu":
            yield f"{where}: {label} of {dataset.name} is no whole number per frame"


def _unusable(protocol: Protocol, dataset: Dataset, episodes: pd.DataFrame) -> Iterator[str]:
    """Why the first episode, by its labels, cannot be asked; the others are looked at when they are scored."""
    from longtake.evals.registry import TASKS

    task, first = TASKS[protocol.task], protocol.start
    if task.why_unusable is None or episodes.empty:
        return
    episode = int(episodes.episode.iloc[0])
    piece = dataset.read(episode, first, first + protocol.frames, labels=True)
    at = task.frame_order(protocol)[0] * (protocol.stride or 1)
    reason = task.why_unusable(protocol, {name: piece.labels[name][at] for name in task.labels(protocol)})
    if reason:
        yield f"{protocol.task}: episode {episode} of {dataset.name} cannot be asked: {reason}"


def _metric_problems(protocol: Protocol, size: Sequence[int]) -> Iterator[str]:
    """Why metrics cannot be computed here: weights that are not installed, frames or clips that are too small."""
    from longtake.evals.registry import METRICS
    from longtake.models.perceptual.weights import MissingWeights, locate

    for name in protocol.metrics:
        metric = METRICS[name]
        if min(size) < metric.smallest:
            yield f"{name}: frames are {size[0]}x{size[1]}, at least {metric.smallest} pixels a side are needed"
        try:
            if metric.weights is not None:
                locate(metric.weights)
        except MissingWeights as error:
            yield f"{name}: {error}"
    yield from set_metrics.problems(protocol)


def subject_problems(protocol: Protocol, subject: EvaluatedCheckpoint, dataset: Dataset, store: Store) -> Iterator[str]:
    """Why a checkpoint cannot be asked: it makes frames by the chunk, or was trained on what would be asked."""
    chunk = subject.chunk
    if protocol.context % chunk:
        near = max(chunk, round(protocol.context / chunk) * chunk)
        yield (
            f"{protocol.task}.context: {protocol.context} is no multiple of {chunk}, the frames that "
            f"{subject.name} (run {subject.run}) takes at a time (model.chunk); the nearest one is {near}"
        )
    if subject.stride != (protocol.stride or 1):
        yield (
            f"{protocol.task}.stride: {protocol.stride or 1}, but {subject.name} (run {subject.run}) was trained with "
            f"data.stride={subject.stride}: leave it out, and each model has its own"
        )
    known = trained_on(subject, dataset, store, protocol)
    if known:
        yield (
            f"{protocol.task}: {subject.name} (run {subject.run}) was trained on {len(known)} of the episodes of "
            f"{dataset.name} that would be asked, the first is {known[0]}: ask of {subject.dataset} instead"
        )


def trained_on(subject: EvaluatedCheckpoint, dataset: Dataset, store: Store, protocol: Protocol) -> list[int]:
    """Episodes that a protocol would ask and that are also in the training split of the subject's own dataset.

    In one dataset the splits are disjoint; two may hold the same episode, and each decides for itself where it goes.
    Episodes of latents are known by the pixels that they were made from.
    """
    if subject.dataset == dataset.name or not store.exists(f"datasets/{subject.dataset}/manifest.json"):
        return []
    own, index = store.dataset(subject.dataset).index, dataset.index
    learned = set(own.source_digest[own.split == "train"])
    episodes = asked_episodes(protocol, dataset).head(protocol.scored).walks.explode()
    scored = index[index.episode.isin(episodes)]
    return [int(episode) for episode in scored.episode[scored.source_digest.isin(learned)]]


def beyond_training(protocols: Sequence[Protocol], subjects: Sequence[EvaluatedCheckpoint]) -> str | None:
    """One line on every model that is asked for streams longer than the clips it was trained on."""
    lines = [
        f"{subject.name} (run {subject.run}) was trained on clips of {subject.trained_frames} frames, "
        f"{protocol.task} asks for streams of {protocol.stream}"
        for subject in {subject.run: subject for subject in subjects}.values()
        for protocol in protocols
        if subject.trained_frames is not None and protocol.stream > subject.trained_frames
    ]
    if not lines:
        return None
    return f"BEYOND TRAINING: {'; '.join(lines)}. Such scores are extrapolation; their rows say so (beyond_training)."
