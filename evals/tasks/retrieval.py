"""Spatial retrieval: walk a path, then walk it back; what was seen must be seen again.

Paper: "Long-Context State-Space Video World Models" (2025), section 4. Shown: `context` frames of a static scene.
Asked: the same path in reverse, given the pose of every frame; generated frame j equals context frame
context - 1 - j, at distance 2j + 1. The first one, which is the last one shown, is made but not judged. Exactly
backwards is one order of many, which a model can learn as such: revisit asks the same frames in any. Needs a recorded
pose, and no simulator. Read it with its floors: copy-last-frame,
context-mean (blurry, and strong in PSNR for that), the same model with its memory wiped or with a stranger's context;
and with its oracle, the context frame of the nearest pose, which here is the truth itself. Range and direction: those
of the metric. Fewest episodes for a useful interval: about 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.task import Clips, Indices, ReportPlace, Task

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """There and back.

    Raises:
        ValueError: a horizon beyond the context, or of one frame.
    """
    if protocol.horizon < 2:
        raise ValueError(f"horizon: {protocol.horizon}; the first frame of the way back is not judged: 2 at least")
    if protocol.horizon > protocol.context:
        raise ValueError(
            f"horizon: {protocol.horizon} is more than the {protocol.context} context frames that can be walked back"
        )
    way = np.arange(protocol.context)
    back = way[::-1][: protocol.horizon]
    return np.concatenate([way, back]), 2 * np.arange(1, protocol.horizon) + 1


def judged(truth: Clips, generated: Clips) -> tuple[Clips, Clips]:
    """All frames but the first, which is the last one shown."""
    return truth[:, 1:], generated[:, 1:]


TASK = Task(
    frame_order,
    why_pose="a way back cannot be told by actions alone",
    compared_frames=judged,
    report=ReportPlace(
        rank=1,
        film=True,
        strips=True,
        distance="The path is walked back: distance counts the frames since the same place was shown.",
    ),
)
