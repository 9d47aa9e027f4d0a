"""Revisit: places that were shown are asked again in any order; is there a map, or only a way back?

Shown: `context` frames of a static scene. Asked: `horizon` of them, each once, in an order that is drawn for each
episode, given the pose of every frame; never the last one shown, which one only had to copy. The distance of an asked
frame is how many frames ago it was shown. Retrieval asks the same frames exactly backwards, which a model can answer by
playing the walk in reverse: one that only does that fails here. Read it with retrieval's controls, floors and oracle:
the gain of memory is what is left above the best of them. Range and direction: those of the metric. Fewest episodes for
a useful interval: about 24.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.task import Indices, ReportPlace, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol


def order(protocol: Protocol, episode: int) -> tuple[Indices, Indices]:
    """There, and to some of the places in an episode's own order.

    Raises:
        ValueError: a horizon of more frames than can be asked.
    """
    context, horizon = protocol.context, protocol.horizon
    if horizon >= context:
        raise ValueError(
            f"horizon: {horizon} is more than the {context - 1} context frames that can be asked: all but the last one"
        )
    rng = np.random.default_rng(zlib.crc32(f"revisit/{protocol.seed}/{episode}".encode()))
    queries = rng.permutation(context - 1)[:horizon]
    return np.concatenate([np.arange(context), queries]), np.arange(context, context + horizon) - queries


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """An order as any episode may have it, the same for all; the frames that an episode needs do not depend on it."""
    return order(protocol, 0)


TASK = Task(frame_order, why_pose="jumps cannot be told by actions alone", order=order, report=ReportPlace(rank=0))
