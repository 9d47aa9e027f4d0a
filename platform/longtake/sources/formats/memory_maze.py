"""Memory Maze's offline data set: an npz per episode, written by its own recorder.

    image (T, 64, 64, 3) uint8; action (T, 6) one-hot; agent_pos (T, 2) in maze squares; agent_dir (T, 2) of length 1
    and more about maze, targets and reward, of which any may be kept as a label.

Actions: the file's action t is the LAST action, the one that led into image t, as here; the first one becomes null.
Pose: (x, y, yaw) with yaw = atan2 of agent_dir, in squares and radians, y up and yaw anticlockwise, like doom-maze's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.datasets.controls import Control, Controls
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.formats.base import Format, Item, Listing, Npz, Refused, led_into, need, sizes

if TYPE_CHECKING:
    from longtake.datasets.shard import Array
    from longtake.storage.store import Store

FPS = 4.0
MOVES = ("noop", "forward", "left", "right", "forward left", "forward right")
CONTROLS = Controls(
    controls=tuple(
        Control(name=name, keys=keys, action=tuple(float(at == number) for at in range(len(MOVES))))
        for number, (name, keys) in enumerate(
            zip(
                MOVES,
                (
                    (" ",),
                    ("ArrowUp", "w"),
                    ("ArrowLeft", "a"),
                    ("ArrowRight", "d"),
                    ("ArrowUp+ArrowLeft", "w+a"),
                    ("ArrowUp+ArrowRight", "w+d"),
                ),
                strict=True,
            )
        )
    ),
    discrete=True,
)
POSE = ["x (squares)", "y (squares)", "yaw (radians, anticlockwise)"]


class MemoryMazeConfig(Config):
    """Memory Maze npz files, anywhere below the path."""

    kind: Literal["memory-maze"] = "memory-maze"
    """Memory Maze's own npz files."""
    labels: list[str] = Field(default=["reward"], description="arrays of the file to keep as labels")


def listing(config: MemoryMazeConfig, place: Store) -> Listing:
    """Every npz. Raises UserError if there is none."""
    items = tuple(Item(name, size) for name, size in sizes(place).items() if name.endswith(".npz"))
    if not items:
        raise UserError(f"{place.uri}: no .npz file below it")
    return Listing(items, {name: f"column {i}, 0 or 1" for i, name in enumerate(MOVES)}, POSE, FPS, controls=CONTROLS)


def read(config: MemoryMazeConfig, place: Store, item: Item) -> Episode:
    """One file. Raises Refused."""
    arrays = Npz(place.read_bytes(item.key))
    frames, action = need(arrays, "image"), need(arrays, "action")
    if action.ndim != 2:
        raise Refused(f"action: {action.dtype} {action.shape}, expected one-hot (T, {len(MOVES)})")
    labels = {name: need(arrays, name) for name in config.labels}
    pose = _pose(need(arrays, "agent_pos"), need(arrays, "agent_dir"))
    return Episode(frames, led_into(action, len(frames), "into"), pose, {"source": item.key}, labels)


def _pose(position: Array, direction: Array) -> Array:
    for name, array in zip(("agent_pos", "agent_dir"), (position, direction), strict=True):
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind != "f" or len(array) != len(position):
            raise Refused(f"{name}: {array.dtype} {array.shape}, expected floats ({len(position)}, 2)")
    if (np.abs(np.hypot(*direction.T.astype(np.float64)) - 1) > 0.01).any():
        raise Refused("agent_dir: not of length 1, it gives no direction")
    return as_yaw(position, direction)


def as_yaw(position: Array, direction: Array) -> Array:
    """Positions (T, 2) and directions (T, 2) as the pose x, y, yaw: float32 (T, 3)."""
    yaw = np.arctan2(direction[:, 1], direction[:, 0])
    return np.column_stack([position, yaw]).astype(np.float32)


FORMAT = Format(MemoryMazeConfig, listing, read)
