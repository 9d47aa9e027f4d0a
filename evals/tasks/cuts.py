"""Cuts: the view is cut away to another place and back; is the first place laid out as it was?

Shown: `context` frames, the first half of them along a path, the second half as far ahead in the same episode, where
the view is cut to. Asked: the first `horizon` frames of the path once more, given the pose of every frame. All are
asked at one distance, the length of the context, so a curve is one over contexts. No walk leads back: a model that has
only seen walks in training meets jumps of its pose for the first time here, and may fail for that; retrieval tells the
two apart. Floors, oracle and controls: as for retrieval. Range and direction: those of the metric. Fewest episodes for
a useful interval: about 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.task import Indices, ReportPlace, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """Here, cut to there, cut back to here.

    Raises:
        ValueError: a context without halves, a horizon beyond the first of them.
    """
    half, odd = divmod(protocol.context, 2)
    if odd:
        raise ValueError(f"context: {protocol.context} is odd; here and there take as many each: {2 * half + 2}, say")
    if protocol.horizon > half:
        raise ValueError(f"horizon: {protocol.horizon} is more than the {half} frames before the cut")
    here = np.arange(half)
    elsewhere = here + protocol.context
    return np.concatenate([here, elsewhere, here[: protocol.horizon]]), np.full(protocol.horizon, protocol.context)


TASK = Task(frame_order, why_pose="a cut cannot be told by actions alone", report=ReportPlace(rank=4))
