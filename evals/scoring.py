"""One function scores: a system, a protocol, and clips → rows, one per episode, frame and metric."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from longtake.evals.metric import FrameMetric, SetMetric
from longtake.evals.protocol import Protocol
from longtake.evals.registry import METRICS, TASKS
from longtake.evals.systems import System, generate
from longtake.evals.task import Build, Clips, EvalClip, Rows
from longtake.models.conditions import Conditions


def episode_seed(protocol: Protocol, episode: int) -> int:
    """Seed of one clip's noise: independent of batch, worker and order."""
    return zlib.crc32(f"{protocol.seed}/{episode}".encode())


Keep = Callable[[str, Clips, Clips], None]
"""Takes, for a metric of sets by its name, the true and the made clips, whole (b, context + horizon, H, W, 3)."""


def score(
    build: Build, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions, keep: Keep | None = None
) -> Rows:
    """Show each clip's context to a system, let it make the rest, compare that with the truth.

    Args:
        build: a fresh system for some of the clips, which run side by side as one batch.
        conditions: of all frames, (b, context + horizon, ...), pose relative to each clip's start.
        keep: where clips go that a metric of sets compares in the end; of a protocol without one nothing does.

    Returns:
        Rows with episode, frame (index among the generated), distance, metric, value, better, and stratum where
        the task tells frames apart.

    Raises:
        ValueError: a metric of sets, and nothing that keeps clips for it.
    """
    if (measure := TASKS[protocol.task].measure) is not None:
        return measure(build, protocol, questions, conditions)
    generated = answer(build(questions), protocol, questions, conditions)
    for name in protocol.metrics:
        if isinstance(METRICS[name], SetMetric):
            if keep is None:
                raise ValueError(f"{name}: compares sets of clips, and there is nothing that keeps them")
            keep(name, *_whole(protocol, questions, generated))
    return compare(protocol, questions, generated)


def _whole(protocol: Protocol, questions: Sequence[EvalClip], generated: Clips) -> tuple[Clips, Clips]:
    """The true clips with their context, and the same context with what was made of it."""
    truth = np.stack([question.frames for question in questions])
    return truth, np.concatenate([truth[:, : protocol.context], generated], 1)


def answer(system: System, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Clips:
    """What a fresh system makes of the questions: (b, horizon, H, W, 3)."""
    frames = torch.from_numpy(np.stack([question.frames for question in questions]))
    generated: Clips = generate(system, frames, conditions, protocol.context, protocol.horizon).numpy()
    return generated


def compare(protocol: Protocol, questions: Sequence[EvalClip], generated: Clips) -> Rows:
    """Rows of what was made (b, horizon, H, W, 3), by every metric of frames: see `score`."""
    truth = np.stack([question.frames[protocol.context :] for question in questions])
    truth, generated = TASKS[protocol.task].compared_frames(truth, generated)
    named = {name: METRICS[name] for name in protocol.metrics}
    metrics = {name: metric for name, metric in named.items() if isinstance(metric, FrameMetric)}
    values = {name: metric.measure(truth, generated) for name, metric in metrics.items()}
    return [
        {
            "episode": question.episode,
            "frame": protocol.horizon - generated.shape[1] + index,
            "distance": int(question.distance[index]),
            "metric": name,
            "value": float(measured[clip, index]),
            "better": metrics[name].better,
            **({} if question.stratum is None else {"stratum": question.stratum[index]}),
        }
        for index in range(generated.shape[1])
        for clip, question in enumerate(questions)
        for name, measured in values.items()
    ]
