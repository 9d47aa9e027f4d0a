"""What a task is: from a stretch of an episode to a context, a truth, and the distance of each asked frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals import retrieval, rollout
from evals.protocol import Protocol


@dataclass(frozen=True)
class Question:
    """One clip of a task: frames uint8 (t, H, W, 3), pose fp32 (t, P) as recorded, actions fp32 (t, A).

    The first `context` frames are shown; the rest are asked. `distance` (horizon,) int64 counts the frames between
    an asked frame and the context frame that the task compares it with.
    """

    frames: NDArray[np.uint8]
    pose: NDArray[np.float32] | None
    actions: NDArray[np.float32]
    distance: NDArray[np.int64]
    episode: int


TASKS = {"retrieval": retrieval, "rollout": rollout}


def build_question(
    protocol: Protocol,
    episode: int,
    frames: NDArray[np.uint8],
    pose: NDArray[np.float32] | None,
    actions: NDArray[np.float32],
) -> Question:
    """Turn `protocol.frames` source frames of an episode into one clip of the task.

    Raises:
        ValueError: the stretch is shorter than the protocol needs, or the task lacks what it needs (a pose).
    """
    if len(frames) < protocol.frames:
        raise ValueError(
            f"episode {episode}: {len(frames)} frames, but {protocol.task} needs {protocol.frames} "
            f"(context {protocol.context}, horizon {protocol.horizon})"
        )
    order, distance = TASKS[protocol.task].path(protocol, has_pose=pose is not None)
    return Question(
        frames=frames[order],
        pose=None if pose is None else pose[order],
        actions=actions[order],
        distance=distance,
        episode=episode,
    )
