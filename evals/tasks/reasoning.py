"""Spatial reasoning: go on to places of which some were seen in the context and some were not.

Paper: as retrieval's, section 4. Shown: `context` frames. Asked: the `horizon` frames that follow in the episode, given
their conditions; the truth is the held-out tail of the same episode. The stratum of a frame is `seen` where some
context frame was taken within `seen_within` of its pose (cells apart, plus half the chord of the turn, as for the
nearest-pose oracle), else `unseen`: what was never seen says nothing about memory. The distance of a seen frame counts
from the newest such context frame, that of an unseen one from the last frame shown: seen frames at distances beyond
what a model's windows reach, layer upon layer (models/analysis/reach.py), are those that only its memory can know. Few
walks lead back at once: at 32 + 32 frames of doom-maze one frame in fifty shows a place of more than twelve frames ago,
at 128 + 64 one in three. Read it with retrieval's controls, floors and oracle. Range and direction: those of the
metric. Fewest episodes for a useful interval: about 24, more where few frames lead back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longtake.evals import task
from longtake.evals.task import Indices, Pose, ReportPlace, Task
from longtake.evals.tasks.rollout import frame_order

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol

SEEN, UNSEEN = "seen", "unseen"


class Fields(task.Fields):
    """Of a protocol."""

    seen_within: Annotated[float, Field(gt=0)] = 0.5
    """How near a context frame's pose must be for a place to count as seen. [cells]"""


def places(protocol: Protocol, pose: Pose) -> tuple[Indices, tuple[str, ...]]:
    """Distance and stratum of each asked frame."""
    near = apart(pose[protocol.context :], pose[: protocol.context], protocol.wraps) <= Fields.of(protocol).seen_within
    seen = np.asarray(near.any(1))
    newest = protocol.context - 1 - near[:, ::-1].argmax(1)
    at = np.arange(protocol.context, len(pose))
    distance = np.where(seen, at - newest, at - protocol.context + 1)
    return distance, tuple(np.where(seen, SEEN, UNSEEN).tolist())


def apart(a: Pose, b: Pose, wraps: float | None = None) -> NDArray[np.float64]:
    """How far poses (n, P) are from poses (m, P): (n, m), cells apart plus half the chord of the turn.

    P is 3 in the plane, x, y, yaw; 7 in space, with a unit quaternion. wraps: cells after which places repeat, where
    they do.
    """
    places = 2 if a.shape[1] == 3 else 3
    gap = a[:, None, :places].astype(np.float64) - b[None, :, :places]
    if wraps is not None:
        gap -= wraps * np.rint(gap / wraps)
    place = np.linalg.norm(gap, axis=-1)
    if places == 3:  # the chord of the angle between two rotations, from their quaternions
        along = np.abs(a[:, 3:].astype(np.float64) @ b[:, 3:].T)
        return np.asarray(place + np.sqrt(np.maximum(0, 1 - along**2)))
    turn = a[:, None, 2].astype(np.float64) - b[None, :, 2]
    return np.asarray(place + np.abs(np.sin(turn / 2)))


TASK = Task(
    frame_order,
    why_pose="places seen cannot be told from places not seen",
    fields=Fields,
    places=places,
    report=ReportPlace(rank=3, distance="Frames of places that the context showed: distance counts the frames since."),
)
