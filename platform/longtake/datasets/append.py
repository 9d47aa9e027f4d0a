"""More episodes for a finished dataset: new shards behind the old ones, which stay as they are, and a new fingerprint.

Episodes keep their numbers and their splits. A new one goes into the split of what it is a copy of, or of its world;
else its own hash decides, so that the splits keep their shares. The dataset as it was stays readable, for runs that
were trained on it, as NAME@FINGERPRINT. One process at a time may append.

    datasets/NAME/versions/FINGERPRINT/manifest.json     of the dataset as it was, and as it is now
    datasets/NAME/versions/FINGERPRINT/index.parquet     of the one with more episodes
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from longtake.datasets import video, worlds
from longtake.datasets.dataset import VERSIONS, Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.index import to_parquet
from longtake.datasets.likeness import Look
from longtake.datasets.shard import ArraySpec
from longtake.datasets.statistics import merged
from longtake.datasets.writer import STATISTICS, DatasetWriter
from longtake.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def append(dataset: Dataset, episodes: Iterable[Episode]) -> Dataset:
    """The dataset with these episodes behind its own, in one more shard.

    Raises UserError for latents, for a version that is not the newest, and for episodes of other arrays; then nothing
    has changed.
    """
    manifest, store, root = dataset.manifest, dataset.store, dataset.root
    if manifest.latents is not None:
        raise UserError(
            f"dataset {dataset.name} holds latents: append to {manifest.latents.dataset} and encode it again"
        )
    if Dataset(store, dataset.name.partition("@")[0]).fingerprint != dataset.fingerprint:
        raise UserError(f"dataset {dataset.name} is not the newest version: append to {dataset.name.partition('@')[0]}")
    writer = _writer(dataset)
    writer.write_shard(manifest.shards, episodes)
    index, stored = _joined(dataset, writer.read_part(manifest.shards))
    written = to_parquet(index)
    grown = writer.manifest_of(
        index, manifest.shards + 1, manifest.refused, zlib.crc32(written), manifest.split_rule, merged(stored)
    )
    grown = grown.model_copy(update={"index": f"{VERSIONS}/{grown.fingerprint}/index.parquet"}).sealed()
    before = f"{root}/{VERSIONS}/{manifest.fingerprint}/manifest.json"
    store.write_bytes(before, manifest.model_dump_json(indent=1).encode())
    store.write_bytes(f"{root}/{grown.index}", written)
    store.write_bytes(f"{root}/{VERSIONS}/{grown.fingerprint}/manifest.json", grown.model_dump_json(indent=1).encode())
    store.write_bytes(f"{root}/manifest.json", grown.model_dump_json(indent=1).encode())
    return Dataset(store, dataset.name)


def _writer(dataset: Dataset) -> DatasetWriter:
    """A writer of the same kind of shards."""
    manifest = dataset.manifest
    frames = next(spec for spec in manifest.arrays if spec.name == "frames")
    return DatasetWriter(
        dataset.store,
        dataset.name,
        recipe=manifest.recipe,
        fps=manifest.fps,
        action_space=manifest.action_space,
        pose=manifest.pose,
        pose_kind=dataset.pose_kind,
        chunk=frames.chunk,
        codec=frames.codec,
        crf=video.CRF if frames.crf is None else frames.crf,
        action_classes=manifest.action_classes,
        controls=manifest.controls,
    )


def _joined(dataset: Dataset, part: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The index with the rows of a new shard behind its own, and what episodes of the training split add to statistics.

    Raises UserError for episodes of other arrays.
    """
    import pandas as pd

    if part.empty or "arrays" not in part:
        raise UserError(f"dataset {dataset.name}: no episode to append")
    stored = [ArraySpec(**spec) for spec in json.loads(part["arrays"].iloc[0])]
    if part["arrays"].nunique() > 1 or tuple(stored) != dataset.manifest.arrays:
        theirs, here = (
            ", ".join(f"{s.name} {s.dtype} {s.shape}" for s in specs) for specs in (dataset.manifest.arrays, stored)
        )
        raise UserError(f"dataset {dataset.name}: its episodes have {theirs}; these have {here}")
    index = dataset.index.drop(columns="source_digest")
    known = _known_splits(index)
    rows = part.drop(columns=[*Look._fields, STATISTICS], errors="ignore").reset_index(drop=True)
    rows.insert(0, "episode", range(len(index), len(index) + len(rows)))
    rows["split"] = [
        _split(known, dataset.manifest.splits, *row) for row in zip(rows["digest"], rows["meta"], strict=True)
    ]
    writer = _writer(dataset)
    parts = pd.concat([*(writer.read_part(shard) for shard in range(dataset.manifest.shards)), part])
    joined = pd.concat([index, rows], ignore_index=True)
    statistics = parts[STATISTICS].tolist() if STATISTICS in parts else []
    trained = zip(statistics, joined["split"], strict=False)
    return joined, [text for text, split in trained if split == "train" and isinstance(text, str)]


def _known_splits(index: pd.DataFrame) -> dict[object, str]:
    """The split of everything that is there, by its digest and by its world."""
    splits: dict[object, str] = {}
    for digest, meta, split in zip(index["digest"], index["meta"], index["split"], strict=True):
        splits[str(digest)] = str(split)
        if (world := worlds.world_of(json.loads(meta))) is not None:
            splits["world", world] = str(split)
    return splits


def _split(known: dict[object, str], sizes: dict[str, int], digest: str, meta: str) -> str:
    """The split of a new episode, which is known from then on."""
    world = worlds.world_of(json.loads(meta))
    split = known.get(digest) or (known.get(("world", world)) if world is not None else None)
    if split is None:
        share, total = int(digest[:12], 16) / 16**12 * sum(sizes.values()), 0
        for split in ("test", "val", "train"):
            total += sizes[split]
            if share < total:
                break
    assert split is not None
    known[digest] = split
    if world is not None:
        known["world", world] = split
    return split
