"""HDF5 files as Minari, robomimic and D4RL write them: a group per episode, or long arrays cut where episodes end.

    episode_0/observations (T + 1, H, W, 3), episode_0/actions (T, A)              Minari's main_data.hdf5
    data/demo_0/obs/agentview_image (T, H, W, 3), data/demo_0/actions (T, A)       robomimic, LIBERO
    observations (N, H, W, 3), actions (N, A), terminals (N), timeouts (N)         D4RL

Every group that holds `frames` and `actions` is an episode; a file that holds them at its top is cut after each frame
where one of `ends` is true, and what follows the last end, which nothing says is whole, is an episode too. Names go on
into groups by a slash. Actions: all three take action t after frame t was seen (`lead` out), with or without the frame
after the last action. Needs the package h5py. An attribute `language_instruction` or `task` of a group is its task.

Frames may be JPEG or PNG files, one a frame (T,), as Minari packs what it takes for pictures. What HDF5 would read as
zeros is refused: datasets that were not written whole, or whose bytes lie in other files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from longtake.datasets import room, video
from longtake.datasets.dataset import TASK
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Array
from longtake.errors import UserError
from longtake.sources.formats.base import Columns, Format, Item, Lead, Listing, Refused, need, sizes

if TYPE_CHECKING:
    from longtake.storage.store import Store

SUFFIXES = (".hdf5", ".h5")
TASKS = ("language_instruction", "task")


class Hdf5Config(Columns):
    """HDF5 files, anywhere below the path."""

    kind: Literal["hdf5"] = "hdf5"
    """HDF5 files of Minari, robomimic or D4RL."""
    frames: str = Field(
        default="observations", description="dataset of the pictures (T, H, W, 3) in an episode's group"
    )
    lead: Lead = Field(default="out", description="into: action t led into frame t; out: it was taken after frame t")
    ends: list[str] = Field(default=["terminals", "timeouts"], description="of long arrays: where an episode ends")


def listing(config: Hdf5Config, place: Store) -> Listing:
    """Every episode of every file. Raises UserError if there is none, or without h5py."""
    if importlib.util.find_spec("h5py") is None:
        raise UserError("hdf5: needs the package h5py: pip install 'longtake[hdf5]'")
    items: list[Item] = []
    refused: dict[str, str] = {}
    for name, size in sizes(place).items():
        if name.endswith(SUFFIXES):
            try:
                with _opened(place, name) as file:
                    items += _episodes(config, name, size, file)
            except Refused as refusal:
                refused[name] = str(refusal)
    if not items:
        names = [f"{name}: {why}" for name, why in refused.items()]
        raise UserError(f"{place.uri}: no episode in any {' or '.join(SUFFIXES)} file below it", *names[:20])
    space = {config.actions: "as recorded"}
    return Listing(tuple(items), space, config.pose_names, refused=refused, pose_kind=config.pose_kind)


@contextlib.contextmanager
def _opened(place: Store, name: str) -> Iterator[Any]:
    """A file of HDF5, to read. Raises Refused for one that is none, or damaged."""
    import h5py

    with place.fs.open(place.path(name), "rb") as data:
        try:
            with h5py.File(data, "r") as file:
                yield file
        except (RuntimeError, KeyError, ValueError, TypeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the storage; h5py's own have no number
                raise
            raise Refused(f"HDF5 that cannot be read: {error}") from error


def _episodes(config: Hdf5Config, name: str, size: int, file: Any) -> list[Item]:
    """The episodes of a file. Raises Refused if there is none."""
    import h5py

    if _holds(config, file):
        spans = _spans(config, file)
        return [
            Item(f"{name}/{start}-{stop}", size * (stop - start) // spans[-1][1], {"file": name, "span": (start, stop)})
            for start, stop in spans
        ]
    groups: list[str] = []
    file.visititems(
        lambda path, node: groups.append(path) if isinstance(node, h5py.Group) and _holds(config, node) else None
    )
    if not groups:
        listed = ", ".join(list(_datasets(file))[:20])
        raise Refused(f"no group with {config.frames} and {config.actions}; there are: {listed or 'no datasets'}")
    ordered = sorted(groups, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path)])
    return [Item(f"{name}/{path}", size // len(groups), {"file": name, "group": path}) for path in ordered]


def _parts(path: str) -> list[str]:
    """A path cut where digits begin and end, so that demo_10 comes behind demo_9."""
    return re.split(r"([0-9]+)", path)


def _holds(config: Hdf5Config, group: Any) -> bool:
    return config.frames in group and config.actions in group


def _datasets(file: Any) -> list[str]:
    import h5py

    paths: list[str] = []
    file.visititems(lambda path, node: paths.append(path) if isinstance(node, h5py.Dataset) else None)
    return paths


def _spans(config: Hdf5Config, file: Any) -> list[tuple[int, int]]:
    """Where episodes begin and end in long arrays. Raises Refused where nothing says so."""
    names = [name for name in config.ends if name in file]
    if not names:
        raise Refused(f"long arrays, and none of {', '.join(config.ends)} says where episodes end")
    length = len(_dataset(file, config.frames))
    ends = np.zeros(length, bool)
    for name in names:
        array = np.asarray(_dataset(file, name))
        if array.shape != (length,) or array.dtype.kind not in "bui":
            raise Refused(f"{name}: {array.dtype} {array.shape}, expected truth values ({length},)")
        ends |= array.astype(bool)
    stops = sorted({*(np.flatnonzero(ends) + 1).tolist(), length})
    return list(zip([0, *stops], stops, strict=False))


def read(config: Hdf5Config, place: Store, item: Item) -> Episode:
    """One episode. Raises Refused."""
    with _opened(place, item.where["file"]) as file:
        group = file[item.where["group"]] if "group" in item.where else file
        arrays = _Arrays(group, slice(*item.where["span"]) if "span" in item.where else slice(None))
        frames = need(arrays, config.frames)
        if frames.ndim == 1 and frames.dtype.kind in "SO":  # files of pictures, as Minari packs them
            frames = np.stack([video.read_image(bytes(picture)) for picture in frames])
        meta = {"source": item.key}
        if (task := next((group.attrs[name] for name in TASKS if name in group.attrs), None)) is not None:
            meta[TASK] = task.decode() if isinstance(task, bytes) else str(task)
        return config.episode(frames, arrays, config.lead, meta)


def _dataset(group: Any, name: str) -> Any:
    """A dataset that lies in this file and was written whole. Raises Refused: HDF5 reads what is not there as zeros."""
    import h5py

    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise Refused(f"{name}: a link into another file, {link.filename}: copy what it leads to into this one")
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise Refused(f"{name}: a group, expected a dataset; there are: {', '.join(list(dataset)[:20]) or 'none'}")
    if dataset.is_virtual or dataset.external:
        raise Refused(f"{name}: its bytes lie in other files, and gaps would read as zeros: write it out into one file")
    if dataset.chunks:
        whole = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        missing = whole - dataset.id.get_num_chunks()
    else:
        whole, missing = 1, int(dataset.size > 0 and dataset.id.get_storage_size() == 0)
    if missing:
        raise Refused(f"{name}: {missing} of its {whole} chunks were never written and would read as zeros")
    return dataset


class _Arrays(Mapping[str, Array]):
    """The datasets of a group by name, each read when it is asked for, and of long arrays the frames of one episode."""

    def __init__(self, group: Any, span: slice) -> None:
        self._group, self._span = group, span
        self._names = _datasets(group)

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._group  # by a link too, which is not among the names

    def __getitem__(self, name: str) -> Array:
        if name not in self:
            raise KeyError(name)
        array = _dataset(self._group, name)
        frames = len(range(*self._span.indices(array.shape[0]))) if array.shape else 1
        room.take(array.nbytes // max(1, array.shape[0] if array.shape else 1) * frames, f"the dataset {name}")
        return np.asarray(array[self._span] if array.shape else array[()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


FORMAT = Format(Hdf5Config, listing, read)
