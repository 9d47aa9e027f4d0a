"""What every foreign format has in common: how its episodes are listed, read, aligned, cut and refused.

`Format` is the face of a format: what a file here has to hold.
"""

from __future__ import annotations

import errno
import io
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.datasets import room
from longtake.datasets.controls import Controls
from longtake.datasets.dataset import TASK
from longtake.datasets.episode import Episode, faults, pose_faults
from longtake.datasets.shard import Array
from longtake.errors import nearest
from longtake.motion import NULL_ACTION, PoseKind
from longtake.sources.resize import Frames, shrink, square

if TYPE_CHECKING:
    from longtake.storage.store import Store

Lead = Literal["into", "out"]
"""Whether a file's action t led into its frame t, or was taken after it and led out of it."""

MOST_BYTES = 2_000_000_000
"""Of an episode in memory, before it is cut: 27 minutes of 64 x 64 at 100 frames a second, 10 s of 1080p at 30."""

SAME_FPS = 0.01  # of a rate: how far another may be from it that is told of the same frames
LOST = 1e-3  # of a column's range: what may get lost when numbers become float32
STORAGE_TROUBLE = {errno.EIO, errno.ENOSPC, errno.ESTALE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT}
NETWORK_PACKAGES = ("botocore", "aiohttp", "aiobotocore", "s3fs")


class Refused(Exception):
    """An episode that cannot be taken; the message says why."""


@dataclass(frozen=True)
class Item:
    """One episode to read: its name in reports, what its size grows with, and whatever its format needs to find it."""

    key: str
    size: int
    where: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What a source holds. refused: reason by name, of what was seen to be no episode without reading it. controls:
    what its actions are called, where it says so."""

    items: tuple[Item, ...]
    action_space: dict[str, str]
    pose: list[str] | None = None
    fps: float | None = None
    refused: dict[str, str] = field(default_factory=dict)
    controls: Controls | None = None
    pose_kind: PoseKind = "planar"


@dataclass(frozen=True)
class Format:
    """How a format is configured, listed and read.

    config: its settings, with `kind`, the format's name, a Literal with itself as default.
    listing: (config, place) to a Listing, cheaply; raises UserError with all that is wrong with the whole.
    read: (config, place, item) to one episode; raises Refused with what is wrong with this one. It runs in a worker.

    `place` is the folder or bucket as a Store, so that a format can be read from wherever datasets can be.
    """

    config: type[Config]
    listing: Callable[[Any, Store], Listing]
    read: Callable[[Any, Store, Item], Episode]


class FormatConfig(Protocol):
    """What every format's config says, beside its own settings."""

    @property
    def kind(self) -> str:
        """The format's name."""


class Framing(Config):
    """What is kept of the pictures: first cut, then averaged to a size. Nothing, unless it is asked for."""

    crop: Literal["square"] | tuple[int, int, int, int] | None = Field(
        default=None, description="the central square, or [top, left, height, width] in pixels [pixels]"
    )
    resize: tuple[int, int] | None = Field(default=None, description="[height, width], area-averaged [pixels]")

    def apply(self, frames: Frames) -> Frames:
        """Frames (T, H, W, 3) as they are kept. Raises Refused if the crop is not inside them."""
        if self.crop == "square":
            frames = square(frames)
        elif self.crop is not None:
            top, left, height, width = self.crop
            if min(self.crop) < 0 or not (0 < height <= frames.shape[1] - top and 0 < width <= frames.shape[2] - left):
                raise Refused(f"crop {list(self.crop)} is not inside frames of {frames.shape[1]} x {frames.shape[2]}")
            frames = frames[:, top : top + height, left : left + width]
        return frames if self.resize is None else shrink(frames, self.resize)


def attempt(read: Callable[[], Episode], framing: Framing, most_bytes: int = MOST_BYTES) -> Episode:
    """Read one episode and cut it. Raises Refused for whatever a damaged or strange file does to its reader.

    Nothing is unpacked that claims to be more than `most_bytes` in all.

    Trouble with the storage is no property of an episode and stays what it is: nothing is left out for a network.
    """
    try:
        with room.limited(most_bytes):
            episode = read()
        _require_frames(episode.frames)
        cut = framing.apply(episode.frames)
    except Refused:
        raise
    except room.TooLarge as error:
        raise Refused(str(error)) from error
    except Exception as error:  # what a parser raises for bytes it was not made for has no common base
        if _storage_trouble(error):
            raise
        raise Refused(f"cannot be read: {type(error).__name__}: {error}".splitlines()[0][:300]) from error
    kept = Episode(cut, episode.actions, episode.pose, episode.meta, episode.labels)
    if wrong := faults(kept):
        raise Refused("; ".join(wrong))
    return kept


def _require_frames(frames: Array) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise Refused(f"frames: {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3)")
    if not frames.size:
        raise Refused(f"frames: none, the shape is {frames.shape}")


def _storage_trouble(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in NETWORK_PACKAGES or (isinstance(error, OSError) and error.errno in STORAGE_TROUBLE)


def frame_rate(rate: Any) -> float | None:
    """Frames per second as a file tells them, or None where it does not. Raises Refused for what is no rate."""
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise Refused(f"fps: {rate!r} in its own files, expected a number above 0: mend them, or say --set fps=N")
    return float(rate)


# --- arrays -------------------------------------------------------------------------------------------------


class Npz(Mapping[str, Array]):
    """The arrays of an npz file by name, each read when it is asked for.

    Every byte of the file is checked against its own checksums, which numpy does not do; but an array that nobody asks
    for, such as one of Python objects, is never read as an array. Raises Refused with the array's name.
    """

    def __init__(self, data: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [info.filename for info in archive.infolist()]
            room.take(sum(info.file_size for info in archive.infolist()), "what is packed in the npz")
            if twice := [name for name, times in Counter(members).items() if times > 1]:
                raise Refused(f"array {twice[0].removesuffix('.npy')!r} is in the file twice")
            self._members = {name.removesuffix(".npy"): archive.read(name) for name in members}

    def __getitem__(self, name: str) -> Array:
        try:
            return read_npy(self._members[name])
        except ValueError as error:
            reason = "Python objects, expected numbers" if "allow_pickle" in str(error) else str(error)
            raise Refused(f"array {name!r}: {reason}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def read_npy(data: bytes) -> Array:
    """The array of an npy file. Raises ValueError for one with pickles, and for one cut off or too long."""
    file = io.BytesIO(data)
    _require_there(file, len(data))  # numpy would first make room for whatever the header claims
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    if file.tell() != len(data):
        raise ValueError(f"{len(data) - file.tell()} bytes behind the array")
    return array


def _require_there(file: io.BytesIO, size: int) -> None:
    """Raise ValueError if the header of an npy file claims more than follows it; leaves the file at its beginning."""
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version in header:  # of a later one numpy itself says what is wrong
        shape, _, dtype = header[version](file)
        claimed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
        if claimed > left and not dtype.hasobject:
            raise ValueError(f"its header tells of {claimed} bytes {shape}, and {left} are there")
        room.take(claimed, f"an array {shape}")
    file.seek(0)


def need(arrays: Mapping[str, Array], name: str) -> Array:
    """One array by name. Raises Refused with the nearest name and all that are there."""
    if name not in arrays:
        raise Refused(f"no array {name!r}{nearest(name, arrays)}; there are: {', '.join(sorted(arrays)) or 'none'}")
    return arrays[name]


def led_into(actions: Array, frames: int, lead: Lead) -> Array:
    """Actions of a file as those of an episode: action t leads into frame t, the first one is the null action.

    actions: T integers, or (T, A) of numbers; with lead "out" the last one leads out of the episode and may be
    missing. Returns int64 (T,) with -1 for null, or float32 (T, A) with zeros. Raises Refused.
    """
    allowed = (frames, frames - 1) if lead == "out" else (frames,)
    if actions.ndim not in (1, 2) or actions.dtype.kind not in "biuf":
        raise Refused(f"actions: {actions.dtype} {actions.shape}, expected numbers (T,) or (T, A)")
    if len(actions) not in allowed:
        raise Refused(f"actions: {len(actions)} long, frames are {frames}")
    rest = actions[: frames - 1] if lead == "out" else actions[1:]
    if actions.ndim == 1 and actions.dtype.kind in "iu":
        return np.concatenate([[NULL_ACTION], _classes(rest)])[:frames]
    rest = as_float32("actions", rest if rest.ndim == 2 else rest[:, None])
    return np.concatenate([np.zeros_like(rest, shape=(1, rest.shape[1])), rest])[:frames]


def _classes(actions: Array) -> Array:
    """Discrete actions as int64. Raises Refused for one that would read as the null action, or as another."""
    if actions.min(initial=0) < 0:
        raise Refused(f"actions: class {actions.min()}, but classes count from 0 and -1 means no action: renumber them")
    if actions.max(initial=0) > np.iinfo(np.int64).max:
        raise Refused(f"actions: class {actions.max()} does not fit into 64 bits")
    return actions.astype(np.int64)


def as_float32(name: str, array: Array) -> Array:
    """Numbers (T, A) as float32. Raises Refused for a column whose changes get lost in that."""
    exact = array.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are refused where the episode is
        kept = array.astype(np.float32)
        lost = np.abs(kept - exact).max(axis=0, initial=0)
        lossy = lost > LOST * (exact.max(axis=0) - exact.min(axis=0)) if len(array) > 1 else lost < 0
    if np.isfinite(kept).all() and lossy.any():
        column = int(lossy.argmax())
        reason = f"around {array[0, column]:g} float32 moves numbers by {lost[column]:.2g}"
        raise Refused(f"{name}: column {column}: {reason}: subtract an offset first")
    return kept


# --- poses --------------------------------------------------------------------------------------------------

PoseLayout = Literal["xy_yaw", "xy", "xyz", "xyz_xyzw", "xyz_wxyz", "matrix", "view_matrix"]


@dataclass(frozen=True)
class Layout:
    """How a pose lies in a file: shape per frame, what it becomes, and what it means in words."""

    shapes: tuple[tuple[int, ...], ...]
    kind: PoseKind
    meaning: str


LAYOUTS: dict[PoseLayout, Layout] = {
    "xy_yaw": Layout(((3,),), "planar", "x, y, yaw (radians, anticlockwise)"),
    "xy": Layout(((2,),), "place", "x, y"),
    "xyz": Layout(((3,),), "place", "x, y, z"),
    "xyz_xyzw": Layout(((7,),), "se3", "x, y, z and a quaternion x, y, z, w"),
    "xyz_wxyz": Layout(((7,),), "se3", "x, y, z and a quaternion w, x, y, z"),
    "matrix": Layout(((4, 4), (3, 4), (16,), (12,)), "se3", "4 x 4 from the camera (or hand) to the world"),
    "view_matrix": Layout(((4, 4), (3, 4), (16,), (12,)), "se3", "4 x 4 from the world to the camera"),
}
LAYOUTS_TOLD = "; ".join(f"{name} ({layout.meaning})" for name, layout in LAYOUTS.items())
RIGID = 1e-3  # how far a matrix may be from a rotation


def pose_names(layout: PoseLayout, units: str | None) -> list[str]:
    """What the columns of a pose are once it is read, with the unit of the lengths where it is known."""
    of = f" ({units})" if units else ""
    kind = LAYOUTS[layout].kind
    if kind == "planar":
        return [f"x{of}", f"y{of}", "yaw (radians, anticlockwise)"]
    places = [f"{axis}{of}" for axis in ("xy" if layout == "xy" else "xyz")]
    return places if kind == "place" else [*places, "qx", "qy", "qz", "qw"]


def as_pose(pose: Array, layout: PoseLayout = "xy_yaw") -> Array:
    """A pose of a file as one of an episode, float32 (T, P): see `longtake.datasets.episode`. Raises Refused."""
    expected = LAYOUTS[layout]
    if pose.ndim < 2 or pose.shape[1:] not in expected.shapes or pose.dtype.kind not in "iuf":
        shapes = " or ".join(f"(T, {', '.join(map(str, shape))})" for shape in expected.shapes)
        fits = [name for name, other in LAYOUTS.items() if name != layout and pose.shape[1:] in other.shapes]
        else_ = f"; for these say source.pose_layout={' or '.join(fits)}" if fits else ""
        raise Refused(f"pose: {pose.dtype} {pose.shape}, expected numbers {shapes}: {expected.meaning}{else_}")
    if "matrix" in layout:
        return _of_matrices(pose.reshape(len(pose), -1, 4).astype(np.float64), seen=layout == "view_matrix")
    kept = as_float32("pose", pose)
    if layout == "xyz_wxyz":
        kept = kept[:, [0, 1, 2, 4, 5, 6, 3]]
    if wrong := pose_faults(kept, expected.kind):
        raise Refused("; ".join(wrong))
    return kept


def _of_matrices(matrices: Array, seen: bool) -> Array:
    """Rigid motions (T, 3 or 4, 4), from the camera to the world or, if `seen`, the other way, as (T, 7)."""
    from scipy.spatial.transform import Rotation

    turn, move = matrices[:, :3, :3], matrices[:, :3, 3]
    off = np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    rigid = (off <= RIGID) & (np.linalg.det(turn) > 0)
    if matrices.shape[1] == 4:
        rigid &= (matrices[:, 3] == [0, 0, 0, 1]).all(axis=1)
    if not rigid.all():
        raise Refused(f"pose: the matrix of frame {int(np.argmin(rigid))} is no rotation and shift")
    if seen:
        turn = turn.transpose(0, 2, 1)
        move = -(turn @ move[..., None])[..., 0]
    turned = Rotation.from_matrix(turn).as_quat()
    return np.concatenate([as_float32("pose", move), turned.astype(np.float32)], axis=1)


class Columns(Config):
    """Which arrays of an npz are what."""

    actions: str = Field(default="actions", description="array of the actions, (T,) integers or (T, A) numbers")
    pose: str | None = Field(default=None, description="array of the poses, laid out as pose_layout says")
    pose_layout: PoseLayout = Field(
        default="xy_yaw",
        exclude_if=lambda layout: layout == "xy_yaw",
        description=f"columns of the pose: {LAYOUTS_TOLD}",
    )
    pose_units: str | None = Field(
        default=None,
        exclude_if=lambda unit: unit is None,
        description="what its lengths are counted in, such as metres",
    )
    task: str | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="array with a text: what the episode is told to do",
    )
    labels: list[str] = Field(default=[], description="arrays to keep beside them")

    def episode(self, frames: Frames, arrays: Mapping[str, Array], lead: Lead, meta: dict[str, Any]) -> Episode:
        """An episode from frames and the arrays beside them. Raises Refused."""
        pose = None if self.pose is None else as_pose(need(arrays, self.pose), self.pose_layout)
        if self.task is not None:
            meta = {**meta, TASK: _text(self.task, need(arrays, self.task))}
        labels = {name: need(arrays, name) for name in self.labels}
        return Episode(frames, led_into(need(arrays, self.actions), len(frames), lead), pose, meta, labels)

    @property
    def pose_names(self) -> list[str] | None:
        """What the pose's columns are, with the unit of the lengths where it is known."""
        return None if self.pose is None else pose_names(self.pose_layout, self.pose_units)

    @property
    def pose_kind(self) -> PoseKind:
        """What kind of pose it is once it is read."""
        return LAYOUTS[self.pose_layout].kind


def _text(name: str, array: Array) -> str:
    """The one text of an array. Raises Refused."""
    if array.size != 1 or array.dtype.kind not in "US":
        raise Refused(f"{name}: {array.dtype} {array.shape}, expected one text")
    text = array.reshape(-1)[0]
    return text.decode() if isinstance(text, bytes) else str(text)


def sizes(place: Store) -> dict[str, int]:
    """Size in bytes of every file below a place, by name, sorted."""
    return place.sizes()
