"""Episodes and datasets: immutable shards, an index that says where every clip lies, and a manifest.

`longtake.datasets.writer` writes them.

    datasets/NAME/recipe.json            what is being made; written first
    datasets/NAME/shards/00012.shard     episodes, see shards.py
    datasets/NAME/index/00012.parquet    the index of that shard; a shard exists when this does
    datasets/NAME/index.parquet          all of them, numbered and split
    datasets/NAME/manifest.json          a dataset exists when this does; written last
    datasets/NAME/report.json            of an ingest: which episodes were refused, and why
    datasets/NAME/tokenizer/             of latents: what encoded them, whole
    datasets/NAME/versions/              where episodes were appended, see `longtake.datasets.append`

Action t leads INTO frame t; the first action of an episode is the null action: 0, or -1 among discrete ones. An
episode's number is its place in the index; its split follows from a hash of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longtake import motion
from longtake.datasets.controls import Controls
from longtake.datasets.episode import LABEL, Episode, faults
from longtake.datasets.index import Index
from longtake.datasets.shard import Array, ArraySpec, Chunk, CorruptData, decode
from longtake.datasets.statistics import Statistics
from longtake.errors import Damaged, UserError, unknown
from longtake.storage import cache

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

__all__ = ["CorruptData", "Dataset", "Episode", "Latents", "Manifest", "dataset_names", "faults"]

DREAMT = "dreamt"
"""In a recipe: the run whose model made the frames, which then are no truth."""
SPLITS = ("train", "val", "test")
SPLIT_RULE = "episodes in the order of the SHA-256 of their arrays: first test, then val, the rest train"
TASK = "task"  # in an episode's metadata: what it is told to do
INDEX, VERSIONS = "index.parquet", "versions"  # a dataset's index, and the folder of what it was before an append
TOKENIZER = "tokenizer"  # the folder in a dataset of latents with what encoded them
CACHED_EPISODES = 4096  # whose small arrays (actions, pose) a reader keeps
READ_AT_ONCE = 64  # episodes whose small arrays are read at the same time
OPENED = 8  # datasets that a process keeps open for those who send them


class Latents(BaseModel):
    """What frames that are latents are of: the pictures of `dataset` (with that fingerprint), of `frame_shape`.

    tokenizer: the autoencoder's run, or the folder that it was read from; step: of the run's checkpoint. weights:
    SHA-256 of the dataset's own copy of it, see `tokenizer_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    fingerprint: str
    tokenizer: str
    step: int | None
    weights: str
    frame_shape: tuple[int, int, int]


class Manifest(BaseModel):
    """What a dataset is; `recipe` is the config that made it.

    psnr_db: what a lossy codec left of the frames. action_classes: how many discrete actions, None for continuous
    ones. refused: episodes of the source that are not in it. controls: what can be done, by which keys, and how that
    moves the pose. pose_kind: of a pose; None: planar. statistics: of the training split, none in datasets of before
    there were any. tasks: what its episodes are told to do, where they say so, sorted. index: its file, where episodes
    were appended. index_crc and seal guard the index and this file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    name: str
    arrays: tuple[ArraySpec, ...]
    episodes: int
    frames: int
    shards: int
    bytes: int
    splits: dict[str, int]
    split_rule: str
    fps: float
    action_space: dict[str, str]
    pose: list[str] | None
    recipe: dict[str, Any]
    fingerprint: str
    psnr_db: float | None = None
    action_classes: int | None = None
    refused: int = 0
    controls: Controls | None = None
    pose_kind: motion.PoseKind | None = Field(None, exclude_if=lambda kind: kind is None)
    statistics: Statistics | None = Field(None, exclude_if=lambda known: known is None)
    tasks: tuple[str, ...] = Field((), exclude_if=lambda names: not names)
    index: str = Field(INDEX, exclude_if=lambda name: name == INDEX)
    index_crc: int
    seal: int = 0

    @property
    def latents(self) -> Latents | None:
        """What its frames are latents of; None for pixels."""
        recorded = self.recipe.get("latents")
        return None if recorded is None else Latents.model_validate(recorded)

    def sealed(self) -> Manifest:
        """The same with the checksum of everything else in it."""
        return self.model_copy(update={"seal": self._checksum()})

    def is_whole(self) -> bool:
        """Whether it is what was sealed."""
        return self.seal == self._checksum()

    def _checksum(self) -> int:
        written = self.model_dump(mode="json", exclude={"seal"} | ({"controls"} if self.controls is None else set()))
        return zlib.crc32(json.dumps(written, sort_keys=True).encode())


def tokenizer_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the files of a tokenizer, by name."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name} {len(files[name])} ".encode() + files[name])
    return total.hexdigest()


def dataset_names(store: Store) -> list[str]:
    """Names of the finished datasets of a store."""
    names = {rel.strip("/").split("/")[-2] for rel in store.glob("datasets/*/manifest.json")}
    return sorted(names)


class Dataset:
    """A finished dataset: read any span of any episode, from several threads if need be.

    cache_bytes: of the local disk for what is read from an object storage; as the environment says if None, see
    `longtake.storage.cache`. Small to pickle: index and memory stay behind, and a process that is sent it often opens
    it once.
    """

    def __init__(
        self, store: Store, name: str, cache_bytes: int | None = None, manifest: Manifest | None = None
    ) -> None:
        """`manifest`: of a dataset that is being finished; else it is read."""
        self.store, self.name, self.root = store, name, f"datasets/{name.partition('@')[0]}"
        self.manifest = manifest or self._read_manifest()
        self._index = Index(store, f"{self.root}/{self.manifest.index}", self.manifest.index_crc)
        self._small: OrderedDict[int, dict[str, Array]] = OrderedDict()
        self._reading = [Lock() for _ in range(READ_AT_ONCE)]
        self._cache_bytes = 0 if store.is_folder else cache.limit() if cache_bytes is None else cache_bytes
        content = f"{store.uri}/{self.root} {self.manifest.seal}"
        self._cache = cache.Cache(content, self._cache_bytes) if self._cache_bytes else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.store, self.name, self.manifest.seal, self._cache_bytes)

    @property
    def index(self) -> pd.DataFrame:
        """A row per episode, with everything that is known of it; read anew at each call.

        source_digest: of the pixels that latents were made from, else the episode's own digest.
        """
        frame = self._index.frame()
        return frame if "source_digest" in frame else frame.assign(source_digest=frame["digest"])

    def _read_manifest(self) -> Manifest:
        name, at, version = self.name.partition("@")
        path = f"{self.root}/{VERSIONS}/{version}/manifest.json" if at else f"{self.root}/manifest.json"
        try:
            manifest = Manifest.model_validate_json(self.store.read_bytes(path))
        except FileNotFoundError:
            if at and self.store.exists(f"{self.root}/manifest.json"):
                raise UserError(f"dataset {name} has no version {version}") from None
            if self.store.exists(f"{self.root}/recipe.json"):
                again = "give the command that began to make it once more"
                raise Damaged(f"{path}: is not there: the dataset is not finished, or has lost it; {again}") from None
            advice = "; make it with `longtake collect`, `longtake ingest` or `longtake encode`"
            raise UserError(unknown("dataset", self.name, dataset_names(self.store)) + advice) from None
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "no JSON"
            raise Damaged(f"{path}: damaged, or of another version of longtake ({where}); make it again") from None
        if not manifest.is_whole():
            raise Damaged(f"{path}: damaged, its checksum does not match; make the dataset again")
        return manifest

    @property
    def bytes_read(self) -> int:
        """Bytes that were asked of the storage through this object."""
        return self.store.bytes_read

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any episode, their order and their splits."""
        return self.manifest.fingerprint

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(H, W, channels) of a frame."""
        return self._spec("frames").shape

    @property
    def frame_dtype(self) -> str:
        """Of the frames, as NumPy writes it."""
        return self._spec("frames").dtype

    weights = (1,)
    """Of a mixture of this dataset alone."""

    def part_of(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which dataset of a mixture these episodes are of: it is alone."""
        return np.zeros_like(episodes)

    @property
    def action_dim(self) -> int:
        """Numbers in an action as a model sees it, see `action_vectors`."""
        return self.manifest.action_classes or self._spec("actions").shape[0]

    @property
    def has_pose(self) -> bool:
        """Whether episodes carry a pose."""
        return any(spec.name == "pose" for spec in self.manifest.arrays)

    @property
    def pose_dim(self) -> int:
        """Numbers in a pose; 0 where none is recorded."""
        return next((spec.shape[0] for spec in self.manifest.arrays if spec.name == "pose"), 0)

    @property
    def pose_kind(self) -> motion.PoseKind:
        """What the columns of its pose are."""
        return self.manifest.pose_kind or "planar"

    @property
    def statistics(self) -> Statistics | None:
        """Of the training split; None in a dataset of before there were any."""
        return self.manifest.statistics

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its episodes are told to do, sorted."""
        return self.manifest.tasks

    def fps_of(self, episode: int) -> float:
        """Frames per second of an episode: those of all of them."""
        return self.manifest.fps

    def label_kind(self, label: str) -> tuple[tuple[int, ...], str]:
        """Shape per frame and dtype of a label. Raises UserError if there is no such label."""
        kinds = {spec.name.removeprefix(LABEL): (spec.shape, spec.dtype) for spec in self.label_specs}
        if label not in kinds:
            raise UserError(unknown(f"label of {self.name}", label, kinds))
        return kinds[label]

    @property
    def label_specs(self) -> list[ArraySpec]:
        """How its labels are stored."""
        return [spec for spec in self.manifest.arrays if spec.name.startswith(LABEL)]

    def task_of(self, episode: int) -> str | None:
        """What an episode is told to do, where it says so."""
        task = json.loads(self._index.meta(episode)).get(TASK)
        return None if task is None else str(task)

    def action_vectors(self, actions: Array) -> NDArray[np.float32]:
        """Actions as float32 (T, action_dim): discrete ones as one-hot, and the null action as zeros."""
        return motion.action_vectors(actions, self.manifest.action_classes)

    def episodes(self, split: str | None = None) -> pd.DataFrame:
        """(episode, length) of a split, or of all. Raises UserError for an unknown split."""
        if split is not None and split not in SPLITS:
            raise UserError(unknown("split", split, SPLITS))
        import pandas as pd

        chosen = self._index.of_split(split)
        return pd.DataFrame({"episode": self._index.numbers[chosen], "length": self._index.lengths[chosen]})

    def read(
        self,
        episode: int,
        start: int = 0,
        stop: int | None = None,
        *,
        labels: bool | Collection[str] = False,
        into: Array | None = None,
    ) -> Episode:
        """Frames [start, stop) of an episode, by one ranged read of their chunks; labels, all or by name, only where
        asked for.

        into: an array that the frames are written to, instead of a new one.
        Raises IndexError for frames that do not exist, CorruptData for bytes that are not what was written.
        """
        if not 0 <= episode < len(self._index.lengths):
            raise IndexError(f"dataset {self.name} has no episode {episode}")
        length = int(self._index.lengths[episode])
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            raise IndexError(f"episode {episode} has {length} frames, not [{start}, {stop})")
        frames = self._read_span(self._spec("frames"), episode, start, stop, into)
        small = {name: array[start:stop] for name, array in self._read_small(episode).items()}
        named = [
            spec for spec in self.label_specs if labels is True or (labels and spec.name.removeprefix(LABEL) in labels)
        ]
        known = {spec.name.removeprefix(LABEL): self._read_span(spec, episode, start, stop) for spec in named}
        return Episode(frames, small["actions"], small.get("pose"), json.loads(self._index.meta(episode)), known)

    def walk(self, episode: int) -> tuple[Array | None, Array, dict[str, Any]]:
        """Pose, actions and metadata of a whole episode, without its frames. Raises as `read` does."""
        small = self._read_small(episode)
        return small.get("pose"), small["actions"], json.loads(self._index.meta(episode))

    def _spec(self, name: str) -> ArraySpec:
        return next(spec for spec in self.manifest.arrays if spec.name == name)

    def _read_small(self, episode: int) -> dict[str, Array]:
        """Actions and pose of an episode, which lie side by side, from the cache or by one read for all threads."""
        with self._reading[episode % len(self._reading)]:
            return self._small.get(episode) or self._read_anew(episode)

    def _read_anew(self, episode: int) -> dict[str, Array]:
        specs = [spec for spec in self.manifest.arrays if spec.name in ("actions", "pose")]
        length = int(self._index.lengths[episode])
        parts: dict[str, list[Array]] = {spec.name: [] for spec in specs}
        for spec, stored in self._stored(episode, {spec: range(len(spec.spans(length))) for spec in specs}):
            parts[spec.name].append(decode(spec, *stored))
        arrays = self._small[episode] = {name: np.concatenate(chunks) for name, chunks in parts.items()}
        if len(self._small) > CACHED_EPISODES:
            self._small.popitem(last=False)
        return arrays

    def _read_span(self, spec: ArraySpec, episode: int, start: int, stop: int, into: Array | None = None) -> Array:
        spans = spec.spans(int(self._index.lengths[episode]))
        wanted = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        array = np.empty((stop - start, *spec.shape), spec.dtype) if into is None else into
        for i, (_, stored) in zip(wanted, self._stored(episode, {spec: wanted}), strict=True):
            first, end = max(spans[i][0], start), min(spans[i][1], stop)
            decode(spec, *stored, first=first - spans[i][0], into=array[first - start : end - start])
        return array

    def _stored(self, episode: int, wanted: Mapping[ArraySpec, Sequence[int]]) -> Iterator[tuple[ArraySpec, _Stored]]:
        """These chunks of these arrays, one by one, by one read from the first to the last byte of them."""
        chunks = {spec: self._index.chunks(episode, spec.name) for spec in wanted}
        named = [chunks[spec][i] for spec, numbers in wanted.items() for i in numbers]
        base, end = min(chunk.offset for chunk in named), max(chunk.offset + chunk.size for chunk in named)
        shard = f"{self.root}/shards/{self._index.shards[episode]:05d}.shard"
        data, base, checked = self._bytes(shard, base, end - base, named)
        for spec, numbers in wanted.items():
            spans = spec.spans(int(self._index.lengths[episode]))
            for i in numbers:
                chunk = chunks[spec][i]
                where = f"{shard}: episode {episode}, {spec.name}, chunk {i}"
                part = chunk.of(data, base) if checked else chunk.require(data, base, where)
                yield spec, _Stored(part, spans[i][1] - spans[i][0], where)

    def _bytes(self, shard: str, offset: int, size: int, chunks: Sequence[Chunk]) -> tuple[bytes, int, bool]:
        """Bytes that hold these chunks, where they begin, and whether the chunks were compared already."""

        def fetch(offset: int, size: int) -> bytes:
            try:
                return self.store.read_range(shard, offset, size)
            except FileNotFoundError:
                raise CorruptData(f"{shard}: the file is gone") from None

        local = self._cache
        return local.get(shard, offset, size, chunks, fetch) if local else (fetch(offset, size), offset, False)


class _Stored(NamedTuple):
    """A chunk as it was read: what `decode` is told of it."""

    data: bytes
    frames: int
    where: str


@lru_cache(maxsize=OPENED)
def _opened(store: Store, name: str, seal: int, cache_bytes: int) -> Dataset:
    """A dataset as another process knew it, by the seal of its manifest."""
    return Dataset(store, name, cache_bytes)


def chunks_of(row: Mapping[Any, Any], spec: ArraySpec) -> list[Chunk]:
    """Where an array of an episode lies, from its row of the index."""
    columns = (row[f"{spec.name}_{part}"] for part in Chunk._fields)
    return [Chunk(int(offset), int(size), int(crc)) for offset, size, crc in zip(*columns, strict=True)]
