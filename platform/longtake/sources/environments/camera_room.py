"""A room seen by a camera that drifts and turns every way: the smallest world whose poses need all six dimensions.

The room is a cube from -1 to 1 whose walls, floor and ceiling are painted with patches of random colours, others per
seed. A frame is what a pinhole camera of 90 degrees sees, a ray per pixel, from anywhere near the middle in any
direction, so nothing of it can be guessed from elsewhere, and the place alone does not tell what is seen: the same
place looks another way for every rotation.

Units: a half of the room's edge. Pose: x, y, z and the quaternion x, y, z, w of the camera in the room; the camera
looks along its own z axis, x to the right of the picture and y down. Actions are the motion that led to a frame, in the
camera's own axes before it: shift and rotation vector. Letters: T frames, p pixels of an edge.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longtake.config import Config
from longtake.datasets.episode import Episode
from longtake.sources.environment import Environment

Floats = NDArray[np.float64]
POSE = [*(f"{axis} (half edges)" for axis in "xyz"), "qx", "qy", "qz", "qw"]
PULL = 0.1  # towards the middle, per frame and half edge: so that the camera stays away from the walls


class CameraRoomConfig(Config):
    """How large its pictures are, and how the camera moves."""

    source: Literal["camera-room"] = "camera-room"
    """A room seen by a camera that turns every way."""
    pixels: int = Field(default=16, ge=4, le=256, description="edge of a frame [pixels]")
    patches: int = Field(default=2, ge=1, le=64, description="of one colour, along an edge of the room [count]")
    steps: int = Field(default=64, ge=2, description="frames per episode [frames]")
    shift: float = Field(default=0.05, ge=0, description="half edges per frame, roughly [half edges/frame]")
    turn: float = Field(default=0.3, ge=0, description="radians per frame, roughly [radians/frame]")
    fps: float = Field(default=10.0, gt=0, description="frames per second of world time [frames/s]")

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.pixels, self.pixels


def about(config: CameraRoomConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses."""
    moves = {f"shift {axis}": "half edges, in the camera's axes" for axis in "xyz"}
    turns = {f"turn {axis}": "rotation vector in the camera's axes, radians" for axis in "xyz"}
    return {"action_space": moves | turns, "pose": POSE, "pose_kind": "se3"}


def require(config: CameraRoomConfig) -> None:
    """Nothing can be missing."""


def generate(config: CameraRoomConfig, seed: int) -> Episode:
    """One episode; the same seed gives the same one.

    frames uint8 (T, p, p, 3), actions float32 (T, 6), pose float32 (T, 7).
    """
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    walls = rng.integers(0, 256, (6, config.patches, config.patches, 3), dtype=np.uint8)
    turned, place = Rotation.random(rng=rng), rng.uniform(-0.3, 0.3, 3)
    spin, frames, poses, actions = np.zeros(3), [], [], []
    for t in range(config.steps):
        spin = 0.7 * spin + rng.normal(0, config.turn / 2, 3)
        shift = rng.normal(0, config.shift, 3) - turned.inv().apply(PULL * place)
        if t:
            place = place + turned.apply(shift)
            turned = turned * Rotation.from_rotvec(spin)
        actions.append(np.concatenate([shift, spin]) if t else np.zeros(6))
        poses.append(np.concatenate([place, turned.as_quat()]))
        frames.append(render(walls, place, turned.as_matrix(), config.pixels))
    did, where = (np.stack(part).astype(np.float32) for part in (actions, poses))
    return Episode(np.stack(frames), did, where, {"seed": seed})


def render(walls: NDArray[np.uint8], place: Floats, axes: Floats, pixels: int) -> NDArray[np.uint8]:
    """What a camera at `place` with these axes (3, 3), columns in the room, sees of walls (6, k, k, 3): (p, p, 3)."""
    line = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    x, y = np.meshgrid(line, line)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ axes.T
    with np.errstate(divide="ignore"):
        away = (np.sign(rays) - place) / rays  # to the wall that lies ahead on each axis
    axis = np.nan_to_num(away, nan=np.inf).argmin(-1)
    hit = place + rays * np.take_along_axis(away, axis[..., None], -1)
    side = np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0
    others = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    count = walls.shape[1]
    cell = np.clip(((np.take_along_axis(hit, others, -1) + 1) / 2 * count).astype(int), 0, count - 1)
    seen: NDArray[np.uint8] = walls[2 * axis + side, cell[..., 0], cell[..., 1]]
    return seen


ENVIRONMENT = Environment(CameraRoomConfig, generate, about, require)
