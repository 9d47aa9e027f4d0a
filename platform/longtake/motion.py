"""How motion is told of, for training and evaluation alike: poses relative to a clip's start, actions that lead into
frames.

Pure arithmetic on arrays; it imports nothing of ours, and every room may import it. Letters: t frames of a clip, S
source frames, A numbers of an action.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

NULL_ACTION = -1
"""Among discrete actions: nothing was done, as before the first frame of an episode. Among numbers it is zeros."""


PoseKind = Literal["planar", "place", "se3"]
"""What the columns of a pose are as it is recorded: x, y, yaw (radians, anticlockwise); x, y and perhaps z; x, y, z and
a unit quaternion x, y, z, w, of a camera or a hand in the world."""
POSE_COLUMNS: dict[PoseKind, tuple[int, ...]] = {"planar": (3,), "place": (2, 3), "se3": (7,)}
POSE_WIDTHS: dict[PoseKind, int] = {"planar": 4, "place": 3, "se3": 9}
"""Numbers of a pose relative to the clip's first frame. planar: dx, dy in its own axes, cos and sin of the turn. place:
dx, dy, dz in the axes of the recording. se3: dx, dy, dz and the first two columns of the rotation (Zhou et al., 2019),
both in its own axes."""
PLACE_WIDTHS: dict[int, int] = {4: 2, 3: 3, 9: 3}
"""How many of a relative pose's numbers are its place, by its width."""
Floats = NDArray[np.float64]


def relative_pose(pose: NDArray[Any], kind: PoseKind = "planar") -> NDArray[np.float32]:
    """Poses (t, P) as recorded → (t, POSE_WIDTHS[kind]), relative to the first; computed in double precision."""
    recorded = np.asarray(pose, dtype=np.float64)
    columns = {"planar": _planar, "place": _place, "se3": _se3}[kind](recorded)
    return columns.astype(np.float32)


def _planar(pose: Floats) -> Floats:
    x, y, yaw = pose.T
    dx, dy, turn = x - x[0], y - y[0], yaw - yaw[0]
    ahead, left = math.cos(yaw[0]), math.sin(yaw[0])
    return np.stack((dx * ahead + dy * left, dy * ahead - dx * left, np.cos(turn), np.sin(turn)), axis=1)


def _place(pose: Floats) -> Floats:
    gone = pose[:, :3] - pose[0, :3]
    return np.pad(gone, ((0, 0), (0, 3 - gone.shape[1])))


def _se3(pose: Floats) -> Floats:
    axes = rotations(pose[:, 3:])
    back = axes[0].T
    gone = (pose[:, :3] - pose[0, :3]) @ back.T
    turned = back @ axes
    return np.concatenate([gone, turned[:, :, 0], turned[:, :, 1]], axis=1)


def rotations(quaternions: Floats) -> Floats:
    """Quaternions x, y, z, w (t, 4), of any length but zero → rotation matrices (t, 3, 3)."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def in_space(pose: NDArray[np.float32], kind: PoseKind) -> NDArray[np.float32]:
    """Poses (t, P) that tell their kind by their width: planar as they are (t, 3), all others (t, 7), a place without a
    direction as one that never turns."""
    if kind == "planar" or pose.shape[1] == 7:
        return pose
    whole = np.zeros((len(pose), 7), np.float32)
    whole[:, : pose.shape[1]], whole[:, 6] = pose, 1
    return whole


def follows(order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which frames of a clip follow in the recording the one before them (t,): to no other an action leads."""
    return np.asarray(np.diff(order, prepend=order[0]) == 1)


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
    steps = order[:, None] * stride + np.arange(1 - stride, 1)  # t stride
    stacked = actions[np.maximum(steps, 0)].reshape(len(order), -1)
    return np.where(follows(order)[:, None], stacked, np.float32(0))
