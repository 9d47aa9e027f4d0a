"""LeRobotDataset v3 and v2.1: rows in Parquet files, pictures in mp4 files or beside the rows as PNG.

    meta/info.json                          features, frames per second, templates of the file names
    meta/episodes/chunk-*/file-*.parquet    a row per episode: its length, and where its rows and its pictures lie;
                                            files of rows and of pictures are shared by many episodes
    data/chunk-*/file-*.parquet             a row per frame

In v2.1 meta/episodes.jsonl has the episodes, and each has files of its own.

Actions: LeRobot's action t is taken after frame t was seen, so it leads out of it. Here action t leads INTO frame t:
the actions move one frame on, the first one becomes null, and the last one, which leads out of the episode, is left.

What an episode is told to do (its `tasks`) is kept as its task. Read from the files alone, without the package
`lerobot`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from longtake.config import Config
from longtake.datasets import video
from longtake.datasets.dataset import TASK
from longtake.datasets.episode import Episode, pose_faults
from longtake.errors import UserError, unknown
from longtake.motion import PoseKind
from longtake.sources.formats.base import Format, Item, Listing, Refused, led_into, sizes
from longtake.sources.formats.rows import json_rows, parquet_rows, require_room
from longtake.storage.local_files import is_inside

if TYPE_CHECKING:
    import pyarrow

    from longtake.datasets.shard import Array
    from longtake.sources.resize import Frames
    from longtake.storage.store import Store

PICTURES = ("video", "image")
TOLD = 20  # contradictions that are named; more of them are of the same kind
POSES: dict[int, tuple[PoseKind, list[str]]] = {
    2: ("place", ["x", "y"]),
    3: ("planar", ["x", "y", "yaw (radians)"]),
    4: ("planar", ["x", "y", "yaw (radians, from a direction)"]),
    7: ("se3", ["x", "y", "z", "qx", "qy", "qz", "qw"]),
}


class LeRobotConfig(Config):
    """One camera of a LeRobotDataset."""

    kind: Literal["lerobot"] = "lerobot"
    """LeRobotDataset v3."""
    camera: str | None = Field(default=None, description="feature with the pictures; needed if there are several")
    action: str = Field(default="action", description="feature with the actions")
    state: str | None = Field(default="observation.state", description="feature kept as label `state`; null for none")
    pose: list[int] | None = Field(
        default=None,
        description="columns of the state: x, y; or x, y, yaw in radians; or x, y and a direction's x, y; or x, y, z "
        "and a quaternion x, y, z, w [column]",
    )


def listing(config: LeRobotConfig, place: Store) -> Listing:
    """Every episode of the table of episodes. Raises UserError with all that is wrong with the whole."""
    info = _info(place)
    camera = _check(config, info)
    rows = _episodes(place, info)
    if not rows:
        raise UserError(f"{place.uri}: no episode in meta/episodes{'.jsonl' if info.own_files else ''}")
    items = sorted((_item(row, info, camera) for row in rows), key=lambda item: int(item.where["episode"]))
    if problems := [*_contradictions(items, info), *_other_rate(info, camera), *_tasks(place, info)]:
        raise UserError(*(f"{place.uri}: {line}" for line in problems[:TOLD]))
    action = info.features[config.action]
    columns = action.names if isinstance(action.names, list) else range(action.shape[0])
    space = {str(name): "as recorded" for name in columns}
    kind: PoseKind = "planar"
    pose = None
    if config.pose is not None:
        kind, pose = POSES[len(config.pose)]
    refused = _overlaps(items)
    return Listing(
        tuple(item for item in items if item.key not in refused), space, pose, info.fps, refused, pose_kind=kind
    )


def _episodes(place: Store, info: Info) -> list[dict[str, Any]]:
    """The rows of all episodes. Raises UserError for a damaged file."""
    if info.own_files:
        return json_rows(place, "meta/episodes.jsonl")
    names = [name for name in sizes(place) if name.startswith("meta/episodes/") and name.endswith(".parquet")]
    return [row for name in names for row in parquet_rows(place, name)]


def _contradictions(items: Sequence[Item], info: Info) -> Iterator[str]:
    """What the metadata tells twice, and not alike: numbers of episodes and frames, and their indices."""
    count = Counter(int(item.where["episode"]) for item in items)
    for episode, times in count.items():
        if times > 1:
            yield f"meta/episodes: episode {episode} is there {times} times; remove the rows or the file that repeat it"
    lengths = {int(item.where["episode"]): int(item.where["length"]) for item in items}
    for field, claimed, counted in (
        ("total_episodes", info.total_episodes, len(lengths)),
        ("total_frames", info.total_frames, sum(lengths.values())),
    ):
        if claimed is not None and claimed != counted:
            wrong = "files are missing or of another set"
            yield f"meta/info.json: {field} is {claimed}, meta/episodes has {counted}: {wrong}"
    for item in items:
        begin, end = item.where["rows"]
        if begin is not None and end is not None and end - begin != item.where["length"]:
            yield f"meta/episodes: {item.key}: length {item.where['length']}, but rows {begin} to {end} of the data"


def _other_rate(info: Info, camera: str) -> Iterator[str]:
    claimed = (info.features[camera].info or {}).get("video.fps")
    if claimed is not None and claimed != info.fps:
        yield f"meta/info.json: fps is {info.fps:g}, the feature {camera} says video.fps {claimed}"


def _tasks(place: Store, info: Info) -> Iterator[str]:
    name = "meta/tasks.jsonl" if info.own_files else "meta/tasks.parquet"
    if info.total_tasks is None or not place.exists(name):
        return
    if (tasks := len((json_rows if info.own_files else parquet_rows)(place, name))) != info.total_tasks:
        yield f"meta/info.json: total_tasks is {info.total_tasks}, {name} has {tasks}"


def _overlaps(items: Sequence[Item]) -> dict[str, str]:
    """Why episodes that lie on each other in one video file are refused: one of them has frames of the other."""
    spans = sorted(
        (item.where["video"], item.where["start_s"], item.where["end_s"], item.key)
        for item in items
        if "end_s" in item.where
    )
    reasons: dict[str, str] = {}
    for (file, _, end, one), (other_file, start, _, other) in itertools.pairwise(spans):
        if file == other_file and start < end - video.NEAR_S:
            reason = f"meta/episodes: {other} begins at {start:g} s of {file}, before {one} ends at {end:g} s"
            reasons |= {one: reason, other: reason}
    return reasons


_FIELD = r"\{(chunk_index|file_index|video_key|episode_index|episode_chunk)(:0?[0-9]{1,2}d?)?\}"
Template = Annotated[str, Field(pattern=f"^([^{{}}]|{_FIELD})*$")]
"""Of file names. A format of Python's could ask for attributes, or for a name of a billion characters."""


class Feature(BaseModel):
    """One column or camera, as meta/info.json tells it; what else is told there is not needed."""

    dtype: str
    shape: tuple[PositiveInt, ...]
    names: Any = None
    info: dict[str, Any] | None = None


class Info(BaseModel):
    """meta/info.json."""

    codebase_version: str
    fps: float = Field(gt=0, allow_inf_nan=False, strict=True)
    features: dict[str, Feature]
    data_path: Template
    video_path: Template | None = None
    total_episodes: int | None = None
    total_frames: int | None = None
    total_tasks: int | None = None
    chunks_size: PositiveInt = 1000

    @property
    def own_files(self) -> bool:
        """Whether every episode has files of its own: version 2.1."""
        return self.codebase_version == "v2.1"


def _info(place: Store) -> Info:
    try:
        info = Info.model_validate_json(place.read_bytes("meta/info.json"))
    except FileNotFoundError:
        raise UserError(f"{place.uri}: no meta/info.json, this is no LeRobotDataset") from None
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in error.errors()]
        raise UserError(*(f"{place.uri}: meta/info.json is damaged: {line}" for line in wrong)) from None
    if not (info.own_files or info.codebase_version.startswith("v3")):
        reason = f"LeRobotDataset {info.codebase_version}; v3 and v2.1 can be read, convert it with lerobot's own tool"
        raise UserError(f"{place.uri}: {reason}")
    return info


def _check(config: LeRobotConfig, info: Info) -> str:
    """The camera. Raises UserError with every feature that is not there."""
    features = info.features
    cameras = [name for name, feature in features.items() if feature.dtype in PICTURES]
    vectors = [name for name, feature in features.items() if feature.dtype not in PICTURES and feature.shape]
    problems = []
    if config.camera is None and len(cameras) != 1:
        problems.append(f"source.camera: is required, there are {len(cameras)}: {', '.join(cameras) or 'none'}")
    if config.camera is not None and config.camera not in cameras:
        problems.append(f"source.camera: {unknown('camera', config.camera, cameras)}")
    if config.action not in vectors:
        problems.append(f"source.action: {unknown('feature', config.action, vectors)}")
    if config.state is not None and config.state not in vectors:
        problems.append(f"source.state: {unknown('feature', config.state, vectors)}; null for none")
    if config.pose is not None and config.state is None:
        problems.append("source.pose: is taken from columns of the state, but source.state is null")
    elif config.pose is not None and config.state in vectors:
        width = features[config.state].shape[0]
        if len(config.pose) not in POSES or not all(0 <= column < width for column in config.pose):
            counts = ", ".join(map(str, POSES))
            problems.append(f"source.pose: {config.pose}, expected {counts} columns of the {width} of {config.state}")
    if problems:
        raise UserError(*problems)
    return config.camera or cameras[0]


def _item(row: dict[str, Any], info: Info, camera: str) -> Item:
    try:
        number, length = int(row["episode_index"]), int(row["length"])
        where: dict[str, Any] = {"episode": number, "length": length, "camera": camera, "fps": info.fps}
        where["rows"] = row.get("dataset_from_index"), row.get("dataset_to_index")
        where["task"] = _task(row.get("tasks"))
        if info.own_files:
            named = {"episode_chunk": number // info.chunks_size, "episode_index": number}
            where["data"] = info.data_path.format(**named)
            if info.features[camera].dtype == "video":
                where |= {"video": str(info.video_path).format(video_key=camera, **named), "start_s": 0.0}
            return _sized(where, info)
        where["data"] = info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if info.features[camera].dtype == "video":
            where["video"] = str(info.video_path).format(
                video_key=camera,
                chunk_index=row[f"videos/{camera}/chunk_index"],
                file_index=row[f"videos/{camera}/file_index"],
            )
            where["start_s"] = float(row[f"videos/{camera}/from_timestamp"])
            where["end_s"] = float(row[f"videos/{camera}/to_timestamp"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"meta/episodes: a row cannot be read: {type(error).__name__}: {error}") from None
    return _sized(where, info)


def _sized(where: dict[str, Any], info: Info) -> Item:
    size = max(1, where["length"]) * math.prod(info.features[where["camera"]].shape)
    return Item(f"episode {where['episode']}", size, where)


def _task(tasks: Any) -> str | None:
    """What an episode is told to do; several in their order, as one."""
    return " / ".join(map(str, tasks)) if isinstance(tasks, list) and tasks else None


def read(config: LeRobotConfig, place: Store, item: Item) -> Episode:
    """One episode. Raises Refused and BadVideo."""
    where = item.where
    if where["length"] < 1:
        raise Refused("frames: none, its length is 0")
    table = _rows(config, place, where)
    frames = _pictures(place, where, table)
    state = None if config.state is None else _vectors(table, config.state)
    labels = {} if state is None else {"state": state}
    pose = None if config.pose is None or state is None else _pose(state, config.pose)
    actions = led_into(_vectors(table, config.action), len(frames), "out")
    task = {} if where["task"] is None else {TASK: where["task"]}
    return Episode(frames, actions, pose, {"source": item.key, "fps": where["fps"], **task}, labels)


def _rows(config: LeRobotConfig, place: Store, where: dict[str, Any]) -> pyarrow.Table:
    """The rows of an episode, in order and complete. Raises Refused."""
    import pyarrow.parquet

    columns = ["frame_index", "timestamp", config.action, *([config.state] if config.state else [])]
    columns += [] if "video" in where else [where["camera"]]
    with place.fs.open(place.path(where["data"]), "rb") as file:
        require_room(pyarrow.parquet.read_metadata(file))
        file.seek(0)
        table = pyarrow.parquet.read_table(
            file,
            columns=columns,
            filters=[("episode_index", "=", where["episode"])],
            use_threads=False,
            page_checksum_verification=True,
        )
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise Refused(f"{where['data']}: no column {' or '.join(missing)}")
    numbers = table["frame_index"].to_pylist()
    if len(numbers) != where["length"] or numbers != list(range(len(numbers))):
        raise Refused(f"{where['data']}: {len(numbers)} rows, expected frames 0 to {where['length'] - 1} in order")
    return table


def _pictures(place: Store, where: dict[str, Any], table: pyarrow.Table) -> Frames:
    if "video" in where:
        times = _video_times(table["timestamp"].to_numpy(), where)
        if not place.exists(where["video"]):
            raise Refused(f"{where['video']}: there is no such file")
        with place.fs.open(place.path(where["video"]), "rb") as file:
            return video.read_at(file, times.tolist(), whole="end_s" not in where)
    return np.stack([_picture(place, row) for row in table[where["camera"]].to_pylist()])


def _picture(place: Store, row: dict[str, Any] | None) -> Frames:
    """A picture that lies in its row, or in a file of its own that the row names. Raises Refused."""
    if row is None or not (row.get("bytes") or row.get("path")):
        raise Refused("a row without a picture")
    if row.get("bytes"):
        return video.read_image(row["bytes"])
    if not is_inside(row["path"]):
        raise Refused(f"{row['path']}: the row names a picture outside of the dataset")
    try:
        return video.read_image(place.read_bytes(row["path"]))
    except FileNotFoundError:
        raise Refused(f"{row['path']}: the row names this picture, and there is no such file") from None


def _video_times(timestamps: Array, where: dict[str, Any]) -> Array:
    """When the video shows each row, in seconds: LeRobot pairs a row with the frame at from_timestamp + timestamp.

    Raises Refused for rows that do not come 1 / fps apart, and for an episode whose span in the video is another.
    """
    times = np.asarray(timestamps, np.float64)
    even = times[0] + np.arange(len(times)) / where["fps"]
    uneven = ~(np.abs(times - even) <= video.NEAR_S)  # so that a time that is no number is uneven too
    if uneven.any():
        row = int(uneven.argmax())
        raise Refused(
            f"timestamp: row {row} is at {times[row]:g} s, at {where['fps']:g} frames/s it is {even[row]:g} s"
        )
    start, promised = where["start_s"], where["start_s"] + even[-1] + 1 / where["fps"]
    end = where.get("end_s", promised)  # an episode with a video of its own has all of it
    if times[0] < -video.NEAR_S or abs(end - promised) > video.NEAR_S:
        raise Refused(
            f"from_timestamp {start:g} s and to_timestamp {end:g} s, but its rows, {times[0]:g} to {times[-1]:g} s, "
            f"end at {promised:g} s of the video"
        )
    return np.asarray(start + times)


def _vectors(table: pyarrow.Table, name: str) -> Array:
    """A feature as (T, A) float32, or (T,) as it is. Raises Refused for rows of different lengths."""
    rows = table[name].to_pylist()
    if len({len(row) if isinstance(row, list) else None for row in rows}) != 1 or None in rows:
        raise Refused(f"{name}: empty rows or rows of different lengths")
    vectors = np.asarray(rows)
    if vectors.dtype.kind not in "biuf":
        raise Refused(f"{name}: {vectors.dtype}, expected numbers")
    return vectors.astype(np.float32) if vectors.ndim > 1 or vectors.dtype.kind == "f" else vectors


def _pose(state: Array, columns: list[int]) -> Array:
    """The pose (T, 2, 3 or 7) from columns of the state. Raises Refused."""
    if state.ndim != 2 or state.shape[1] <= max(columns):
        raise Refused(f"state: {state.shape}, it has no column {max(columns)}")
    if len(columns) in (2, 7):
        kept = state[:, columns].astype(np.float32)
        if wrong := pose_faults(kept, POSES[len(columns)][0]):
            raise Refused("; ".join(wrong))
        return kept
    x, y, *turn = (state[:, column] for column in columns)
    yaw = turn[0] if len(turn) == 1 else np.arctan2(turn[1], turn[0])
    return np.column_stack([x, y, yaw]).astype(np.float32)


FORMAT = Format(LeRobotConfig, listing, read)
