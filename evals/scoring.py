"""One function scores: a system, a protocol, and clips → rows, one per episode, frame and metric."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evals.metrics import METRICS
from evals.protocol import Protocol
from evals.systems import System
from evals.tasks import Question
from models.conditions import Conditions


def episode_seed(protocol: Protocol, episode: int) -> int:
    """Seed of one clip's noise: independent of batch, worker and order."""
    return zlib.crc32(f"{protocol.seed}/{episode}".encode())


def score(
    system: System, protocol: Protocol, questions: Sequence[Question], conditions: Conditions
) -> list[dict[str, Any]]:
    """Show each clip's context to the system, generate the rest, compare it with the truth.

    Args:
        system: fresh; clips run side by side as one batch.
        conditions: of all frames, (b, context + horizon, ...), pose relative to each clip's start.

    Returns:
        Rows with episode, frame (index among the generated), distance, metric, value.
    """
    frames = torch.from_numpy(np.stack([question.frames for question in questions]))
    context, total = protocol.context, frames.shape[1]
    system.observe(frames[:, :context], conditions.frames(0, context))
    rows = []
    for t in range(context, total):
        made = system.step(conditions.frames(t, t + 1))[:, 0].numpy()
        for question, image in zip(questions, made, strict=True):
            rows += [
                {
                    "episode": question.episode,
                    "frame": t - context,
                    "distance": int(question.distance[t - context]),
                    "metric": metric,
                    "value": METRICS[metric](question.frames[t], image),
                }
                for metric in protocol.metrics
            ]
    return rows
