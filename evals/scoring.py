"""One function scores: a system, a protocol, and clips → rows, one per episode, frame and metric."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from longtake.evals.metrics import METRICS
from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.systems import System, generate
from longtake.evals.task import Clips, EvalClip, Rows
from longtake.models.conditions import Conditions


def episode_seed(protocol: Protocol, episode: int) -> int:
    """Seed of one clip's noise: independent of batch, worker and order."""
    return zlib.crc32(f"{protocol.seed}/{episode}".encode())


def score(system: System, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Rows:
    """Show each clip's context to the system, generate the rest, compare it with the truth.

    Args:
        system: fresh; clips run side by side as one batch.
        conditions: of all frames, (b, context + horizon, ...), pose relative to each clip's start.

    Returns:
        Rows with episode, frame (index among the generated), distance, metric, value, better, and stratum where
        the task tells frames apart.
    """
    return compare(protocol, questions, answer(system, protocol, questions, conditions))


def answer(system: System, protocol: Protocol, questions: Sequence[EvalClip], conditions: Conditions) -> Clips:
    """What a fresh system makes of the questions: (b, horizon, H, W, 3)."""
    frames = torch.from_numpy(np.stack([question.frames for question in questions]))
    made: Clips = generate(system, frames, conditions, protocol.context, protocol.horizon).numpy()
    return made


def compare(protocol: Protocol, questions: Sequence[EvalClip], made: Clips) -> Rows:
    """Rows of what was made (b, horizon, H, W, 3), by every metric of single frames: see `score`."""
    truth = np.stack([question.frames[protocol.context :] for question in questions])
    truth, made = TASKS[protocol.task].compared_frames(truth, made)
    flat = [clips.reshape(-1, *clips.shape[2:]) for clips in (truth, made)]
    values = {}
    for name in protocol.metrics:
        if (measure := METRICS[name].measure) is not None:
            values[name] = measure(*((truth, made) if METRICS[name].clips else flat)).reshape(made.shape[:2])
    return [
        {
            "episode": question.episode,
            "frame": protocol.horizon - made.shape[1] + index,
            "distance": int(question.distance[index]),
            "metric": metric,
            "value": float(found[clip, index]),
            "better": METRICS[metric].better,
            **({} if question.stratum is None else {"stratum": question.stratum[index]}),
        }
        for index in range(made.shape[1])
        for clip, question in enumerate(questions)
        for metric, found in values.items()
    ]
