"""Writing a dataset: its shards, by any number of processes, and then its index and its manifest.

Everything that an episode must be is checked here, so that what has been written can be read without a doubt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from longtake.config import differences
from longtake.datasets import controls as controls_of
from longtake.datasets import video, worlds
from longtake.datasets.controls import Controls
from longtake.datasets.dataset import SPLIT_RULE, SPLITS, TASK, Dataset, Manifest
from longtake.datasets.episode import LABEL, Episode, faults, pose_faults
from longtake.datasets.index import from_parquet, to_parquet
from longtake.datasets.likeness import Leak, Look, leaks, look
from longtake.datasets.shard import Array, ArraySpec, Chunk, Codec, ShardBuffer, decode
from longtake.datasets.statistics import Statistics, merged, of_episode
from longtake.errors import Damaged, UserError, unknown
from longtake.motion import PoseKind
from longtake.storage import seals
from longtake.storage.sealed_files import is_stamped, stamped

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store


logger = logging.getLogger(__name__)
STATISTICS = "statistics"  # the column of a shard's part with what an episode adds to them
WORLDS_RULE = (
    "worlds in the order of the smallest SHA-256 of their episodes' arrays: first test, then val, the rest train"
)
"""As SPLIT_RULE, where worlds have several walks."""


def split_sizes(episodes: int, val: float, test: float, of: str = "episodes") -> dict[str, int]:
    """Episodes per split, or worlds; none is empty. Raises UserError if there are too few for that."""
    sizes = {"val": max(1, round(episodes * val)), "test": max(1, round(episodes * test))}
    train = episodes - sum(sizes.values())
    if train < 1:
        need = "at least 3" if episodes < 3 else "more, or smaller val and test fractions"
        raise UserError(
            f"{of}={episodes} is too few: train, val and test each need one, and val={val:g}, "
            f"test={test:g} leave {max(0, train)} for train; take {need}"
        )
    return {"train": train, **sizes}


class DatasetWriter:
    """Writes the shards of one dataset, from any number of processes, and then its index and manifest.

    A shard is complete when its index part is there: a killed writer just writes the missing ones again.

    codec: of the frames; all else is stored without loss. crf: the quality of a video. action_classes: how many
    discrete actions there are, if more may exist than occur. controls: what the source knows of its actions, see
    `longtake.datasets.controls`. pose_kind: what the columns of a pose are. Raises UserError for a codec it does not
    know.
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
        codec: Codec = "zstd",
        crf: int = video.CRF,
        action_classes: int | None = None,
        controls: Controls | None = None,
        pose_kind: PoseKind = "planar",
    ) -> None:
        if codec not in get_args(Codec):
            raise UserError(unknown("codec", codec, get_args(Codec)))
        self.store, self.name, self.root = store, name, f"datasets/{name}"
        self.recipe = json.loads(json.dumps(dict(recipe)))
        self.about: dict[str, Any] = {
            "fps": fps,
            "action_space": dict(action_space),
            "pose": list(pose) if pose else None,
            "pose_kind": pose_kind if pose and pose_kind != "planar" else None,
        }
        self.val, self.test, self.chunk = val, test, chunk
        self.codec, self.crf, self.action_classes, self.controls = codec, crf, action_classes, controls
        self.pose_kind = pose_kind
        self.recipe_hash = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:12]

    def claim(self) -> bool:
        """Write the recipe, or find it there; True if the dataset is already finished.

        Raises UserError naming the differing fields if the name belongs to a dataset made otherwise, and Damaged where
        that cannot be known.
        """
        finished = self.store.exists(f"{self.root}/manifest.json")
        existing = Dataset(self.store, self.name).manifest.recipe if finished else self._begun()
        if existing is None:
            self.store.write_bytes(f"{self.root}/recipe.json", seals.dumped(self.recipe))
            return False
        differing = differences(existing, self.recipe)
        if differing:
            raise UserError(
                f"dataset {self.name!r} exists with another config ({'; '.join(differing)}): "
                f"choose another name (--set name=...) or delete {self.store.path(self.root)}"
            )
        return finished

    def _begun(self) -> dict[str, Any] | None:
        """The recipe of a dataset that is not finished; None if nothing has begun."""
        path = f"{self.root}/recipe.json"
        try:
            return seals.loaded_or_older(self.store.read_bytes(path), path)
        except FileNotFoundError:
            return None
        except Damaged as error:
            way = "bring it back, or remove it if what is there was begun with this very config: shards say it too"
            raise Damaged(f"{error}; {way}") from None

    def done(self, shard: int) -> bool:
        """Whether this shard is complete and made by the same recipe; one whose index is damaged is made again."""
        try:
            part = self.read_part(shard)
        except FileNotFoundError:
            return False
        except Damaged as error:
            logger.warning("%s: the shard is made again", error)
            return False
        return bool((part["recipe"] == self.recipe_hash).all())

    def write_shard(
        self, shard: int, episodes: Iterable[Episode], before_index: Callable[[], None] = lambda: None
    ) -> None:
        """Write one shard and then its part of the index. Writing it again replaces both.

        episodes are taken one by one: only their compressed bytes are kept. before_index: called when the shard is
        written and not yet complete. Raises ValueError with every fault of an episode that is none.
        """
        import pandas as pd

        buffer = ShardBuffer()
        rows = [self._row(buffer, shard, episode) for episode in episodes]
        part = pd.DataFrame(rows, columns=None if rows else ["recipe"])
        self.store.write_bytes(f"{self.root}/shards/{shard:05d}.shard", buffer.bytes())
        before_index()
        self.store.write_bytes(self._part(shard), stamped(to_parquet(part)))

    def finalize(self, shards: int, refused: int = 0, like: Dataset | None = None) -> Dataset:
        """Number and split the episodes of shards 0 .. shards-1, write index and manifest.

        refused: how many episodes of the source are not in it, for the manifest. like: a dataset of the same episodes,
        whose splits are kept.
        Raises UserError for episodes with different arrays, and for too few of them.
        """
        import pandas as pd

        parts = [part for part in map(self.read_part, range(shards)) if len(part)]
        if not parts:
            raise UserError(f"dataset {self.name!r}: no episode at all")
        index = pd.concat(parts, ignore_index=True)
        recorded = index.get(STATISTICS)
        index = index.drop(columns=[*Look._fields, STATISTICS], errors="ignore")
        specs = index["arrays"].unique()
        if len(specs) != 1:
            raise UserError(f"dataset {self.name!r}: episodes with different arrays: {' and '.join(specs[:2])}")
        index.insert(0, "episode", np.arange(len(index)))
        if like is None:
            index["split"], rule = self._splits(index)
        else:
            index[["split", "source_digest"]] = like.index[["split", "digest"]].to_numpy()
            rule = f"as in dataset {like.name}"
        written = to_parquet(index)
        trained = None if recorded is None else recorded[index["split"] == "train"]
        statistics = None if trained is None or trained.isna().any() else merged(trained)
        manifest = self.manifest_of(index, shards, refused, zlib.crc32(written), rule, statistics)
        self.store.write_bytes(f"{self.root}/index.parquet", written)
        controls = controls_of.of_dataset(Dataset(self.store, self.name, manifest=manifest))
        manifest = manifest.model_copy(update={"controls": controls}).sealed()
        self.store.write_bytes(f"{self.root}/manifest.json", manifest.model_dump_json(indent=1).encode())
        return Dataset(self.store, self.name)

    def leaks(self, shards: int) -> list[Leak]:
        """Episodes of the finished dataset that look like one of another split; of latents nothing is known."""
        import pandas as pd

        parts = pd.concat([part for part in map(self.read_part, range(shards)) if len(part)])
        if "pictures" not in parts:
            return []
        columns = zip(parts["pictures"], parts["step"].to_numpy(float), strict=True)
        looks = [Look(np.asarray(pictures, np.uint8), step) for pictures, step in columns]
        return leaks(looks, Dataset(self.store, self.name).index["split"].tolist())

    def _row(self, buffer: ShardBuffer, shard: int, episode: Episode) -> dict[str, Any]:
        if wrong := [*faults(episode), *self._pose_faults(episode)]:
            raise ValueError("; ".join(wrong))
        arrays = episode.arrays()
        specs = array_specs(episode, self.chunk, self.codec, self.crf)
        chunks = {spec.name: buffer.add(spec, arrays[spec.name]) for spec in specs}
        discrete = episode.actions.dtype == np.int64
        return {
            "shard": shard,
            "length": len(episode),
            **{f"{n}_{part}": [getattr(c, part) for c in cs] for n, cs in chunks.items() for part in Chunk._fields},
            "squared_error": sum(_squared_error(buffer, s, arrays[s.name], chunks[s.name]) for s in specs),
            "action_classes": int(episode.actions.max()) + 1 if discrete else 0,
            "digest": digest(arrays),
            "meta": json.dumps(episode.meta, sort_keys=True),
            "arrays": json.dumps([spec.model_dump() for spec in specs]),
            "recipe": self.recipe_hash,
            STATISTICS: of_episode(episode, self.pose_kind),
            **_look(episode.frames),
        }

    def _pose_faults(self, episode: Episode) -> list[str]:
        return [] if episode.pose is None else pose_faults(episode.pose, self.pose_kind)

    def _part(self, shard: int) -> str:
        return f"{self.root}/index/{shard:05d}.parquet"

    def read_part(self, shard: int) -> pd.DataFrame:
        """What a shard adds to the index, with what is told of its episodes beside.

        Raises FileNotFoundError, and Damaged for other bytes than were written.
        """
        data = self.store.read_bytes(self._part(shard))
        if not is_stamped(data):
            raise Damaged(f"{self._part(shard)}: damaged, or of an earlier version, whose parts had no SHA-256")
        return from_parquet(data)

    def manifest_of(
        self, index: pd.DataFrame, shards: int, refused: int, index_crc: int, rule: str, statistics: Statistics | None
    ) -> Manifest:
        """What the dataset is, from its index and what is found out about its training split; sealed."""
        specs = [ArraySpec(**spec) for spec in json.loads(index["arrays"][0])]
        frames = int(index["length"].sum())
        numbers = frames * math.prod(next(spec.shape for spec in specs if spec.name == "frames"))
        content = json.dumps([index["digest"].tolist(), index["split"].tolist(), index["arrays"][0]])
        return Manifest(
            name=self.name,
            arrays=tuple(specs),
            episodes=len(index),
            frames=frames,
            shards=shards,
            bytes=int(sum(sum(sizes) for spec in specs for sizes in index[f"{spec.name}_size"])),
            splits={split: int((index["split"] == split).sum()) for split in SPLITS},
            split_rule=rule,
            recipe=self.recipe,
            fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
            psnr_db=round(video.psnr_db(index["squared_error"].sum(), numbers), 2) if self.codec == "video" else None,
            action_classes=self._classes(int(index["action_classes"].max())),
            refused=refused,
            controls=self.controls,
            statistics=statistics,
            tasks=_tasks(index["meta"]),
            index_crc=index_crc,
            **self.about,
        )

    def _splits(self, index: pd.DataFrame) -> tuple[list[str], str]:
        """The split of each episode, and by which rule: walks in one world are never told apart."""
        groups = worlds.in_one_split(index["digest"].tolist(), index["meta"].tolist())
        in_worlds = any(worlds.world_of(json.loads(text)) is not None for text in index["meta"])
        sizes = split_sizes(len(groups), self.val, self.test, "worlds" if in_worlds else "episodes")
        return _assign(groups, sizes), WORLDS_RULE if in_worlds else SPLIT_RULE

    def _classes(self, seen: int) -> int | None:
        """How many discrete actions there are; None for continuous ones."""
        if not seen:
            return None
        if self.action_classes is not None and seen > self.action_classes:
            raise UserError(f"action_classes: {self.action_classes}, but the episodes hold action {seen - 1}")
        return self.action_classes or seen


def array_specs(episode: Episode, chunk: int, codec: Codec, crf: int) -> list[ArraySpec]:
    """How the arrays of an episode are stored, in the order they lie. Raises ValueError for frames that are no video.

    chunk: frames per chunk. codec, crf: of the frames; all else is stored whole and without loss.
    """
    arrays = episode.arrays()
    if codec == "video" and episode.frames.dtype != np.uint8:
        raise ValueError(f"codec video: frames are {episode.frames.dtype}, needs uint8")
    named = [(name, arrays[name].dtype.str, arrays[name].shape[1:]) for name in sorted(arrays, key=_place)]
    frames = {"chunk": chunk, "codec": codec, "crf": crf if codec == "video" else None}
    return [
        ArraySpec(name=name, dtype=dtype, shape=shape, **(frames if name == "frames" else {"chunk": 0}))
        for name, dtype, shape in named
    ]


def _tasks(metas: Iterable[str]) -> tuple[str, ...]:
    """What episodes are told to do, each once, sorted."""
    recorded = (json.loads(text).get(TASK) for text in metas)
    return tuple(sorted({str(task) for task in recorded if task is not None}))


def _place(name: str) -> int:
    """Where an array lies: small ones whole and first, so that they are one read; what no clip asks for last."""
    return 1 if name == "frames" else 2 if name.startswith(LABEL) else 0


def _look(frames: Array) -> dict[str, Any]:
    """How an episode of pictures looks, as columns of its row."""
    return look(frames)._asdict() if frames.dtype == np.uint8 else {}


def _squared_error(buffer: ShardBuffer, spec: ArraySpec, array: Array, chunks: Sequence[Chunk]) -> float:
    """What the codec cost: the sum of squared differences to what is read back; 0 without reading if lossless."""
    if spec.codec != "video":
        return 0.0
    spans = spec.spans(len(array))
    return sum(
        video.squared_error(decode(spec, buffer.data(chunk), b - a, spec.name), array[a:b])
        for chunk, (a, b) in zip(chunks, spans, strict=True)
    )


def digest(arrays: Mapping[str, Array]) -> str:
    """What an episode's split follows from: a hash of its arrays, with their names, types and shapes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()[:32]


def copies(dataset: Dataset) -> int:
    """How many episodes are exact copies of an earlier one: every array is the same. They lie in its split."""
    return int(dataset.index["digest"].duplicated().sum())


def _assign(groups: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> list[str]:
    """The split of each episode, from groups of them that share one, in the order in which splits are filled."""
    named = np.repeat(["test", "val", "train"], [sizes["test"], sizes["val"], sizes["train"]]).tolist()
    splits = {place: split for places, split in zip(groups, named, strict=True) for place in places}
    return [splits[place] for place in range(len(splits))]
