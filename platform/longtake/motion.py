"""How motion is told of, for training and evaluation alike: poses relative to a clip's start, actions that lead into
frames.

Pure arithmetic on arrays; it imports nothing of ours, and every room may import it. Letters: t frames of a clip, S
source frames, A numbers of an action.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

NULL_ACTION = -1
"""Among discrete actions: nothing was done, as before the first frame of an episode. Among numbers it is zeros."""


def relative_pose(pose: NDArray[Any]) -> NDArray[np.float32]:
    """(t, 3) of x, y, yaw → (t, 4): dx, dy in the first frame's own axes, cos and sin of the turn since."""
    x, y, yaw = np.asarray(pose, dtype=np.float64).T
    dx, dy, turn = x - x[0], y - y[0], yaw - yaw[0]
    ahead, left = math.cos(yaw[0]), math.sin(yaw[0])
    columns = (dx * ahead + dy * left, dy * ahead - dx * left, np.cos(turn), np.sin(turn))
    return np.stack(columns, axis=1).astype(np.float32)


def action_vectors(actions: NDArray[Any], classes: int | None) -> NDArray[np.float32]:
    """Actions as numbers (t, A): discrete ones (t,) of so many classes as one-hot, and the null action as zeros."""
    if classes is None:
        return np.asarray(actions, np.float32)
    return np.asarray(actions[:, None] == np.arange(classes), np.float32)


def leading_actions(actions: NDArray[np.float32], order: NDArray[np.int64], stride: int) -> NDArray[np.float32]:
    """Actions (S, A) of source frames → (t, stride·A): those that led into each frame of a clip, the oldest first.

    Frame t of the clip is source frame order[t] x stride. Nothing led into the first one, nor into one that does not
    follow in the recording the one before it, as in a clip that walks back or jumps: it has the null action, since what
    was recorded there does not lead here.
    """
    follows = np.diff(order, prepend=order[0]) == 1
    steps = order[:, None] * stride + np.arange(1 - stride, 1)  # t stride
    stacked = actions[np.maximum(steps, 0)].reshape(len(order), -1)
    return np.where(follows[:, None], stacked, np.float32(0))
