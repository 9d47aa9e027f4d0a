"""One function scores: a system, a protocol, and clips → rows, one per episode, frame and metric."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.metrics import METRICS
from evals.protocol import Protocol
from evals.systems import System
from evals.tasks import Question
from models.conditions import Conditions


def episode_seed(protocol: Protocol, episode: int) -> int:
    """Seed of one clip's noise: independent of batch, worker and order."""
    return zlib.crc32(f"{protocol.seed}/{episode}".encode())


def generate(system: System, frames: Tensor, conditions: Conditions, context: int, horizon: int) -> Tensor:
    """Show a system the context and let it make the rest: (b, horizon, H, W, 3).

    Args:
        system: fresh.
        frames: uint8 (b, at least context, H, W, 3).
        conditions: of the frames shown and of those to make.
        context: frames shown.
        horizon: frames to make.
    """
    system.observe(frames[:, :context], conditions.frames(0, context))
    total = context + horizon
    starts = range(context, total, system.stride)
    return torch.cat([system.step(conditions.frames(t, min(t + system.stride, total))) for t in starts], 1)


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
    context = protocol.context
    made = generate(system, frames, conditions, context, protocol.horizon).numpy()
    rows = []
    for index in range(made.shape[1]):
        for question, images in zip(questions, made, strict=True):
            rows += [
                {
                    "episode": question.episode,
                    "frame": index,
                    "distance": int(question.distance[index]),
                    "metric": metric,
                    "value": METRICS[metric](question.frames[context + index], images[index]),
                }
                for metric in protocol.metrics
            ]
    return rows
