"""One clip of a task, from a stretch of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.task import EvalClip, Pose
from longtake.motion import follows, leading_actions


def build_clip(
    protocol: Protocol,
    episode: int,
    frames: NDArray[np.uint8],
    pose: Pose | None,
    actions: NDArray[np.float32],
    labels: Mapping[str, NDArray[Any]] | None = None,
    goal: str | None = None,
) -> EvalClip:
    """Turn `protocol.frames` source frames of an episode into one clip of the task.

    Actions are stacked where the protocol has a stride: those that led from the frame before, the oldest first.

    Raises:
        ValueError: the stretch is shorter than the protocol needs, or the task lacks what it needs (a pose).
    """
    task = TASKS[protocol.task]
    if task.why_pose and pose is None:
        raise ValueError(f"{protocol.task}: this dataset has no pose; {task.why_pose}")
    order, distance = task.frame_order(protocol) if task.order is None else task.order(protocol, episode)
    at = order * (protocol.stride or 1)
    if len(frames) <= at.max():
        raise ValueError(
            f"episode {episode}: {len(frames)} frames, but {protocol.task} needs {protocol.frames} "
            f"(context {protocol.context}, horizon {protocol.horizon})"
        )
    stratum = None
    if task.places is not None and pose is not None:
        distance, stratum = task.places(protocol, pose[at])
    return EvalClip(
        frames=frames[at],
        pose=None if pose is None else pose[at],
        actions=leading_actions(actions, order, protocol.stride or 1),
        distance=distance,
        episode=episode,
        stratum=stratum,
        labels={name: values[at] for name, values in (labels or {}).items()},
        led=follows(order),
        goal=goal,
    )
