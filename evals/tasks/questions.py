"""Questions: what do the numbers that a model carries still say of frames that it saw long ago?

Shown: `context` frames. Asked, of each of the first `horizon` of them: its class by `label`, answered by a linear probe
(evals/linear_probe.py) that is given the carried memory after the whole context and nothing else. `warmth` is the class
that needs no labels: whether the frame is redder than bluer, compared with the other clips' at the same place; any
other is the name of a whole-number label of the dataset, such as the colour of an object. Probes are trained across the
protocol's clips and judged on clips that they did not see. `accuracy` is 1 or 0 per frame; distance counts from the
frame to the end of the context. Chance is the most frequent class; the ceiling is the same probe on the frames
themselves, made small; a wiped memory must score chance, and a stranger's context too, else the answer was in the
conditions. Frames 100 to 200 asked at 600: context 600, horizon 200, distance above 400. Fewest episodes: 10; a probe
is as good as its clips are many, so compare at equal numbers only, and take hundreds for a figure to print.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longtake.evals import task
from longtake.evals.linear_probe import FOLDS, Classes, out_of_fold
from longtake.evals.metric import TaskMetric
from longtake.evals.task import Build, EvalClip, Indices, Rows, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.models.conditions import Conditions

WARMTH = "warmth"
METRIC = "accuracy"
METRICS = {
    METRIC: TaskMetric(
        "Accuracy", "higher", 2, "1 for a question about an earlier frame that is answered correctly, else 0."
    )
}
TOGETHER = 8  # clips that are shown side by side


class Fields(task.Fields):
    """Of a protocol."""

    label: str = WARMTH
    """What is asked of a frame, `warmth` or a whole-number label of the dataset."""


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """The context, and how long ago each asked frame was at its end.

    Raises:
        ValueError: more frames asked than shown, too few clips to train a probe on.
    """
    if protocol.horizon > protocol.context:
        raise ValueError(f"horizon: {protocol.horizon} is more than the {protocol.context} frames that can be asked of")
    if protocol.scored < 2 * FOLDS:
        raise ValueError(f"episodes: {protocol.scored} are too few to train a probe on; at least {2 * FOLDS}")
    return np.arange(protocol.context), protocol.context - np.arange(protocol.horizon)


def measure(build: Build, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Rows:
    """A row per clip and asked frame: whether its class could be read from what the system carried."""
    import torch

    vectors = []
    for first in range(0, len(questions), TOGETHER):
        some = questions[first : first + TOGETHER]
        system = build(some)
        frames = torch.from_numpy(np.stack([question.frames for question in some]))
        system.observe(frames, conditions.clips(first, first + len(some)))
        carried = getattr(system, "carried", None)
        if carried is None:
            raise ValueError(f"questions: {type(system).__name__} has no carried(), so nothing can be asked of it")
        vectors.append(carried().double().numpy())
    right = out_of_fold(np.concatenate(vectors), classes(protocol, questions))
    return [
        {"episode": question.episode, "frame": frame, "distance": int(question.distance[frame])}
        | {"metric": METRIC, "value": float(right[clip, frame]), "better": "higher"}
        for clip, question in enumerate(questions)
        for frame in range(protocol.horizon)
    ]


def classes(protocol: Protocol, questions: Sequence[EvalClip]) -> Classes:
    """The right answers (n, horizon), counted from 0."""
    label = Fields.of(protocol).label
    if label == WARMTH:
        frames = np.stack([question.frames[: protocol.horizon] for question in questions]).astype(np.float64)
        warm = (frames[..., 0] - frames[..., 2]).mean((2, 3))
        above: Classes = np.asarray(warm > np.median(warm, 0), np.int64)
        return above
    known = np.stack([question.labels[label][: protocol.horizon] for question in questions])
    counted: Classes = np.unique(known, return_inverse=True)[1].astype(np.int64).reshape(known.shape)
    return counted


def labels(protocol: Protocol) -> tuple[str, ...]:
    """The one that is asked, where it is of the dataset."""
    label = Fields.of(protocol).label
    return () if label == WARMTH else (label,)


TASK = Task(
    frame_order,
    baselines=("chance", "raw_frames"),
    fields=Fields,
    labels=labels,
    label_field=("label", (WARMTH,)),
    measure=measure,
    metrics=METRICS,
    frames=False,
    needs_all_clips=True,
)
