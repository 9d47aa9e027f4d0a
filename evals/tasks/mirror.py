"""Mirror: the model walks on, and back over its own steps; what it made on the way must be there on the way back.

After the mirror test of the MIND benchmark. Shown: `context` frames. Asked: half of the `horizon` along the episode's
own path, and the same path back, given the pose of every frame. The truth is what the model itself made on the way
there: frame j of the way back is compared with it at distance 2j + 1, so no held-out frames are needed and nothing is
lost to the many futures that a scene may have. A model that makes the same frame for ever scores the ceiling: read it
beside rollout, which says whether the path was any good. Floors and controls say nothing here and are left out. Range
and direction: those of the metric, sharpness against the way there. Fewest episodes for a useful interval: about 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.task import Clips, Indices, ReportPlace, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """On, and the same way back.

    Raises:
        ValueError: a horizon that has no half.
    """
    half, odd = divmod(protocol.horizon, 2)
    if odd:
        raise ValueError(f"horizon: {protocol.horizon} is odd; there and back takes as many each: {2 * half + 2}, say")
    way = np.arange(protocol.context + half)
    return np.concatenate([way, way[::-1][:half]]), 2 * np.arange(half) + 1


def compared_frames(truth: Clips, generated: Clips) -> tuple[Clips, Clips]:
    """The way there, last frame first, and the way back."""
    half = generated.shape[1] // 2
    return generated[:, :half][:, ::-1], generated[:, half:]


TASK = Task(
    frame_order,
    why_pose="a way back cannot be told by actions alone",
    compared_frames=compared_frames,
    compared_with="nothing",
    report=ReportPlace(
        rank=6,
        distance="The model's own path walked back: distance counts the frames since it made the same place itself.",
    ),
)
