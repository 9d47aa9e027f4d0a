"""Following: does a model do what it is told, or does it go on as if nothing had been said?

Shown: `context` frames. Asked: the `horizon` frames that follow in the episode, twice: under their own conditions, and
under those of another episode (the next of the clips scored; its context keeps its own). `following` is the error under
the others' conditions over the error under its own, mean squared error of a frame's pixels each: 1 is a model that does
not listen, larger is better. Distance counts from the last frame shown. Where episodes are told much the same the ratio
is small for the best of models: read it beside the error itself (rollout). Fewest episodes for a useful interval: about
24, never fewer than 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longtake.evals.metric import TaskMetric
from longtake.evals.task import Build, Clips, EvalClip, Indices, Rows, Task
from longtake.evals.tasks import rollout

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.models.conditions import Conditions

METRIC = "following"
CARD = (
    "The error under another episode's conditions over the error under its own, 1 where a model does not listen; "
    "higher is better."
)
METRICS = {METRIC: TaskMetric("Following", "higher", 2, CARD)}
TOGETHER = 8  # clips that are shown side by side
LEAST = 1e-3  # of a squared grey level: an error below it is that of rounding


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """Straight on.

    Raises:
        ValueError: too few clips for another's conditions.
    """
    if protocol.scored < 2:
        raise ValueError(f"episodes: {protocol.scored}, but another's conditions need 2 at least")
    return rollout.frame_order(protocol)


def measure(build: Build, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Rows:
    """A row per clip and frame: the error under another clip's conditions over that under its own."""
    import torch

    from longtake.evals.systems import generate

    others = swapped(conditions, protocol.context)
    ratios = []
    for first in range(0, len(questions), TOGETHER):
        some = questions[first : first + TOGETHER]
        frames = torch.from_numpy(np.stack([question.frames for question in some]))
        answers = (
            generate(build(some), frames, given.clips(first, first + len(some)), protocol.context, protocol.horizon)
            for given in (conditions, others)
        )
        own, other = (_errors(protocol, some, clips.numpy()) for clips in answers)
        ratios.append(np.maximum(other, LEAST) / np.maximum(own, LEAST))
    values = np.concatenate(ratios)
    return [
        {"episode": question.episode, "frame": frame, "distance": int(question.distance[frame])}
        | {"metric": METRIC, "value": float(values[clip, frame]), "better": "higher"}
        for clip, question in enumerate(questions)
        for frame in range(protocol.horizon)
    ]


def swapped(conditions: Conditions, context: int) -> Conditions:
    """The conditions of each clip while it is shown, and those of the next one afterwards."""
    import torch

    clips = torch.arange(conditions.size)
    after = conditions.chosen(clips.roll(-1))
    return conditions.joined(after, context)


def _errors(protocol: Protocol, questions: Sequence[EvalClip], answers: Clips) -> NDArray[np.float64]:
    """Mean squared error of each frame, in squared grey levels: (b, horizon)."""
    truth = np.stack([question.frames[protocol.context :] for question in questions])
    return np.asarray(np.square(answers.astype(np.float64) - truth).mean((2, 3, 4)))


TASK = Task(
    frame_order, measure=measure, metrics=METRICS, frames=False, needs_all_clips=True, compared_with="baselines"
)
