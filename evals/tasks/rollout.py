"""Rollout: go on from the context along the episode's own path, frame after frame, on the model's own frames.

Shown: `context` frames. Asked: the `horizon` frames that follow in the episode, given their conditions. The distance
of generated frame j is j + 1, to the last frame shown. Scores fall with distance for two reasons, drift and places
never seen, so this task says how long a generation stays faithful, retrieval what is remembered, and reasoning tells
the two apart. How a long generation fails: `drift` (colours wander), `motion` (it freezes, or flickers), `sharpness`
(it blurs), `seams` (spatial blocks do not hang together: the price of small ones), `fvd` (as a whole). Range and
direction: those of the metric. Fewest episodes for a useful interval: about 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.task import Indices, ReportPlace, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """Straight on."""
    return np.arange(protocol.context + protocol.horizon), np.arange(protocol.horizon) + 1


TASK = Task(frame_order, report=ReportPlace(rank=5, film=True, since="the last frame of the context"))
