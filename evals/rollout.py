"""Rollout: go on from the context along the episode's own path, frame after frame, on the model's own frames.

Shown: `context` frames. Asked: the `horizon` frames that follow in the episode, given their conditions. The distance
of generated frame j is j + 1, to the last frame shown. Scores fall with distance for two reasons, drift and places
never seen, so this task says how long a generation stays faithful, and retrieval says what is remembered. Range and
direction: those of the metric. Fewest episodes for a useful interval: about 24.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evals.protocol import Protocol


def path(protocol: Protocol, has_pose: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the source frames in the order shown and asked, and the distance of each asked frame."""
    return np.arange(protocol.frames), np.arange(protocol.horizon) + 1
