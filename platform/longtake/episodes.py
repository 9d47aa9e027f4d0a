"""Episodes and datasets: immutable shards, an index that says where every clip lies, and a manifest.

    datasets/NAME/recipe.json            what is being made; written first
    datasets/NAME/shards/00012.shard     episodes, see shards.py
    datasets/NAME/index/00012.parquet    the index of that shard; a shard exists when this does
    datasets/NAME/index.parquet          all of them, numbered and split
    datasets/NAME/manifest.json          a dataset exists when this does; written last

Action t leads INTO frame t. An episode's number is its place in the index; its split follows from a hash of
its bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from longtake.config import differences
from longtake.errors import UserError, unknown
from longtake.shards import Array, ArraySpec, Chunk, CorruptData, ShardBuffer, decode

if TYPE_CHECKING:
    import pandas as pd

    from longtake.store import Store

__all__ = ["CorruptData", "Dataset", "DatasetWriter", "Episode", "Manifest", "dataset_names", "split_sizes"]

SPLITS = ("train", "val", "test")
SPLIT_RULE = "episodes in the order of the SHA-256 of their arrays: first test, then val, the rest train"
CACHED_EPISODES = 4096  # whose small arrays (actions, pose) a reader keeps


@dataclass(frozen=True)
class Episode:
    """frames uint8 (T, H, W, 3), actions float32 (T, A), pose float32 (T, P) or None, what else is known."""

    frames: Array
    actions: Array
    pose: Array | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by name."""
        named = {"frames": self.frames, "actions": self.actions, "pose": self.pose}
        return {name: array for name, array in named.items() if array is not None}


class Manifest(BaseModel):
    """What a dataset is; `recipe` is the config that made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    name: str
    arrays: tuple[ArraySpec, ...]
    episodes: int
    frames: int
    shards: int
    bytes: int
    splits: dict[str, int]
    split_rule: str = SPLIT_RULE
    fps: float
    action_space: dict[str, str]
    pose: list[str] | None
    recipe: dict[str, Any]
    fingerprint: str


def dataset_names(store: Store) -> list[str]:
    """Names of the finished datasets of a store."""
    found = {rel.strip("/").split("/")[-2] for rel in store.glob("datasets/*/manifest.json")}
    return sorted(found)


def split_sizes(episodes: int, val: float, test: float) -> dict[str, int]:
    """Episodes per split; none is empty. Raises UserError if there are too few episodes for that."""
    sizes = {"val": max(1, round(episodes * val)), "test": max(1, round(episodes * test))}
    train = episodes - sum(sizes.values())
    if train < 1:
        need = "at least 3" if episodes < 3 else "more, or smaller val and test fractions"
        raise UserError(
            f"episodes={episodes} is too few: train, val and test each need one, and val={val:g}, "
            f"test={test:g} leave {max(0, train)} for train; take {need}"
        )
    return {"train": train, **sizes}


class DatasetWriter:
    """Writes the shards of one dataset, from any number of processes, and then its index and manifest.

    A shard is complete when its index part is there: a killed writer just writes the missing ones again.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        recipe: Mapping[str, Any],
        fps: float,
        action_space: Mapping[str, str],
        pose: Sequence[str] | None,
        val: float = 0.1,
        test: float = 0.1,
        chunk: int = 32,
    ) -> None:
        self.store, self.name, self.root = store, name, f"datasets/{name}"
        self.recipe = json.loads(json.dumps(dict(recipe)))
        self.about: dict[str, Any] = {
            "fps": fps,
            "action_space": dict(action_space),
            "pose": list(pose) if pose else None,
        }
        self.val, self.test, self.chunk = val, test, chunk
        self.recipe_hash = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:12]

    def claim(self) -> bool:
        """Write the recipe, or find it there; True if the dataset is already finished.

        Raises UserError naming the differing fields if the name belongs to a dataset made otherwise.
        """
        try:
            there = json.loads(self.store.read_bytes(f"{self.root}/recipe.json"))
        except FileNotFoundError:
            self.store.write_bytes(f"{self.root}/recipe.json", json.dumps(self.recipe, indent=1).encode())
            return False
        differing = differences(there, self.recipe)
        if differing:
            raise UserError(
                f"dataset {self.name!r} exists with another config ({'; '.join(differing)}): "
                f"choose another name (--set name=...) or delete {self.store.path(self.root)}"
            )
        return bool(self.store.exists(f"{self.root}/manifest.json"))

    def done(self, shard: int) -> bool:
        """Whether this shard is complete and made by the same recipe."""
        try:
            part = self._read_part(shard)
        except FileNotFoundError:
            return False
        return bool((part["recipe"] == self.recipe_hash).all())

    def write_shard(self, shard: int, episodes: Sequence[Episode]) -> None:
        """Write one shard and then its part of the index. Writing it again replaces both."""
        buffer = ShardBuffer()
        rows = [self._row(buffer, shard, episode) for episode in episodes]
        self.store.write_bytes(f"{self.root}/shards/{shard:05d}.shard", buffer.bytes())
        self.store.write_bytes(f"{self.root}/index/{shard:05d}.parquet", _to_parquet(_frame(rows)))

    def finalize(self, shards: int) -> Dataset:
        """Number and split the episodes of shards 0 .. shards-1, write index and manifest."""
        import pandas as pd

        index = pd.concat([self._read_part(shard) for shard in range(shards)], ignore_index=True)
        specs = index["arrays"].unique()
        if len(specs) != 1:
            raise UserError(f"dataset {self.name!r}: episodes with different arrays: {' and '.join(specs[:2])}")
        index.insert(0, "episode", np.arange(len(index)))
        index["split"] = _assign(index["digest"].tolist(), split_sizes(len(index), self.val, self.test))
        manifest = self._manifest(index, shards, [ArraySpec(**spec) for spec in json.loads(specs[0])])
        self.store.write_bytes(f"{self.root}/index.parquet", _to_parquet(index))
        self.store.write_bytes(f"{self.root}/manifest.json", manifest.model_dump_json(indent=1).encode())
        return Dataset(self.store, self.name)

    def _row(self, buffer: ShardBuffer, shard: int, episode: Episode) -> dict[str, Any]:
        arrays = episode.arrays()
        if len({len(array) for array in arrays.values()}) != 1:
            raise ValueError(f"arrays of different lengths: { {k: len(v) for k, v in arrays.items()} }")
        # Small arrays lie whole and first, so that they are one read; frames are cut into chunks.
        specs = [_spec(name, arrays[name], self.chunk) for name in sorted(arrays, key=lambda n: n == "frames")]
        chunks = {spec.name: buffer.add(spec, arrays[spec.name]) for spec in specs}
        return {
            "shard": shard,
            "length": len(episode),
            **{f"{n}_{part}": [getattr(c, part) for c in cs] for n, cs in chunks.items() for part in Chunk._fields},
            "digest": _digest(arrays),
            "meta": json.dumps(episode.meta, sort_keys=True),
            "arrays": json.dumps([spec.model_dump() for spec in specs]),
            "recipe": self.recipe_hash,
        }

    def _read_part(self, shard: int) -> pd.DataFrame:
        return _from_parquet(self.store.read_bytes(f"{self.root}/index/{shard:05d}.parquet"))

    def _manifest(self, index: pd.DataFrame, shards: int, specs: list[ArraySpec]) -> Manifest:
        told = json.dumps([index["digest"].tolist(), index["split"].tolist(), index["arrays"][0]])
        return Manifest(
            name=self.name,
            arrays=tuple(specs),
            episodes=len(index),
            frames=int(index["length"].sum()),
            shards=shards,
            bytes=int(sum(sum(sizes) for spec in specs for sizes in index[f"{spec.name}_size"])),
            splits={split: int((index["split"] == split).sum()) for split in SPLITS},
            recipe=self.recipe,
            fingerprint=hashlib.sha256(told.encode()).hexdigest()[:16],
            **self.about,
        )


class Dataset:
    """A finished dataset: read any span of any episode. Small to pickle: index and cache stay behind."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.root = store, name, f"datasets/{name}"
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "name": self.name, "root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def _load(self) -> None:
        try:
            text = self.store.read_bytes(f"{self.root}/manifest.json")
        except FileNotFoundError:
            raise UserError(
                unknown("dataset", self.name, dataset_names(self.store)) + "; make it with `longtake collect`"
            ) from None
        self.manifest = Manifest.model_validate_json(text)
        self.index = _from_parquet(self.store.read_bytes(f"{self.root}/index.parquet"))
        self._rows: list[dict[Any, Any]] = self.index.to_dict("records")
        self._small: OrderedDict[int, dict[str, Array]] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any episode, their order and their splits."""
        return self.manifest.fingerprint

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(H, W, channels) of a frame."""
        return self._spec("frames").shape

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self._spec("actions").shape[0]

    @property
    def has_pose(self) -> bool:
        """Whether episodes carry a pose."""
        return any(spec.name == "pose" for spec in self.manifest.arrays)

    def episodes(self, split: str | None = None) -> pd.DataFrame:
        """(episode, length) of a split, or of all. Raises UserError for an unknown split."""
        if split is not None and split not in SPLITS:
            raise UserError(unknown("split", split, SPLITS))
        chosen = self.index if split is None else self.index[self.index["split"] == split]
        return chosen[["episode", "length"]].reset_index(drop=True)

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """Frames [start, stop) of an episode, by one ranged read of their chunks.

        Raises IndexError for frames that do not exist, CorruptData for bytes that are not what was written.
        """
        row = self._rows[episode]
        stop = row["length"] if stop is None else stop
        if not 0 <= start < stop <= row["length"]:
            raise IndexError(f"episode {episode} has {row['length']} frames, not [{start}, {stop})")
        frames = self._read_span(self._spec("frames"), episode, start, stop)
        small = {name: array[start:stop] for name, array in self._read_small(episode).items()}
        return Episode(frames, small["actions"], small.get("pose"), json.loads(row["meta"]))

    def _spec(self, name: str) -> ArraySpec:
        return next(spec for spec in self.manifest.arrays if spec.name == name)

    def _read_small(self, episode: int) -> dict[str, Array]:
        """Every array of an episode but its frames, from the cache or the shard."""
        if episode not in self._small:
            specs = [spec for spec in self.manifest.arrays if spec.name != "frames"]
            length = self._rows[episode]["length"]
            self._small[episode] = {spec.name: self._read_span(spec, episode, 0, length) for spec in specs}
            if len(self._small) > CACHED_EPISODES:
                self._small.popitem(last=False)
        return self._small[episode]

    def _read_span(self, spec: ArraySpec, episode: int, start: int, stop: int) -> Array:
        row = self._rows[episode]
        spans = spec.spans(row["length"])
        wanted = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        columns = (row[f"{spec.name}_{part}"] for part in Chunk._fields)
        chunks = [Chunk(int(offset), int(size), int(crc)) for offset, size, crc in zip(*columns, strict=True)]
        base, end = chunks[wanted[0]].offset, chunks[wanted[-1]].offset + chunks[wanted[-1]].size
        shard = f"{self.root}/shards/{row['shard']:05d}.shard"
        data = self._bytes(shard, base, end - base)
        pieces = []
        for i in wanted:
            part = data[chunks[i].offset - base :][: chunks[i].size]
            where = f"{shard}: episode {episode}, {spec.name}, chunk {i}"
            pieces.append(decode(spec, part, chunks[i].crc, spans[i][1] - spans[i][0], where))
        first = spans[wanted[0]][0]
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return joined[start - first : stop - first]

    def _bytes(self, shard: str, offset: int, size: int) -> bytes:
        try:
            return bytes(self.store.read_range(shard, offset, size))
        except FileNotFoundError:
            raise CorruptData(f"{shard}: the file is gone") from None


def _spec(name: str, array: Array, chunk: int) -> ArraySpec:
    return ArraySpec(name=name, dtype=array.dtype.str, shape=array.shape[1:], chunk=chunk if name == "frames" else 0)


def _digest(arrays: Mapping[str, Array]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()[:32]


def _assign(digests: list[str], sizes: Mapping[str, int]) -> list[str]:
    """The split of each episode, by the rank of its digest; equal digests keep the order of the episodes."""
    order = np.argsort(np.array(digests), kind="stable")
    splits: NDArray[Any] = np.empty(len(digests), dtype=object)
    named = np.repeat(["test", "val", "train"], [sizes["test"], sizes["val"], sizes["train"]])
    splits[order] = named
    return [str(split) for split in splits]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _to_parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _from_parquet(data: bytes) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(io.BytesIO(data))
