"""Seconds and memory of the plan of a training over a million episodes, from an index as it lies on disk.

The index is drawn at random, with no shard behind it: `episodes` of `frames` frames, each in chunks of 32 with places
and checksums of their own. A fresh process opens it, which checks all of its bytes, makes the plan of clips with random
starts, and asks for the first, the middle and the last step of epochs 0 and 3. `open` is read once in a training and
grows with the file; the bars are `plan` and `step` together under 1 s, and `memory`, the peak of that whole process,
Python and libraries included, under 500 MB. Found on two busy cores: 0.53 s, 296 MB, and 3.9 s to open. About a minute,
and a GB of disk for a while.
"""

from __future__ import annotations

import statistics
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.datasets.dataset import SPLITS, Manifest
from longtake.datasets.index import ROWS
from longtake.datasets.shard import ArraySpec
from longtake.jobs.bench.plan_reader import look
from longtake.jobs.bench.timing import Row
from longtake.storage.store import Store, open_store

if TYPE_CHECKING:
    import pyarrow as pa

Positive = Annotated[int, Field(ge=1)]
CHUNK = 32  # frames
CHUNK_BYTES = 100_000, 160_000  # of a chunk of 64 x 64 frames, compressed
SMALL_BYTES = 4_000, 9_000  # of the actions or the pose of an episode
EPISODES_PER_SHARD = 32
UNITS = {"open": "s", "plan": "s", "step": "s", "memory": "MB"}


class Settings(Config):
    """How large an index, which clips, how often."""

    episodes: Positive = 1_000_000
    frames: Positive = Field(1000, description="per episode")
    clip: Positive = Field(64, description="frames per clip")
    clips: Positive = Field(16, description="per batch")
    rounds: Positive = Field(3, description="processes that open it, one after another")


def run(settings: Settings) -> list[Row]:
    """Write the index, read it in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        written(store, settings)
        rows = []
        for _ in range(settings.rounds):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.append(pool.submit(look, store.uri, "plan", settings.clip, settings.clips).result())
    case = f"{settings.episodes:,} episodes of {settings.frames} frames"
    return [Row(case, n, statistics.median(one[n] for one in rows), unit, len(rows)) for n, unit in UNITS.items()]


def written(store: Store, settings: Settings) -> None:
    """Index and manifest of a dataset `plan`."""
    import pyarrow.parquet as parquet

    path = Path(store.path("datasets/plan/index.parquet"))
    path.parent.mkdir(parents=True)
    specs = [
        ArraySpec(name="actions", dtype="<f4", shape=(2,), chunk=0),
        ArraySpec(name="pose", dtype="<f4", shape=(3,), chunk=0),
        ArraySpec(name="frames", dtype="|u1", shape=(64, 64, 3), chunk=CHUNK),
    ]
    parts = (_rows(first, settings, specs) for first in range(0, settings.episodes, ROWS))
    table = next(parts)
    with parquet.ParquetWriter(path, table.schema) as file:
        file.write_table(table, row_group_size=ROWS)
        for table in parts:
            file.write_table(table, row_group_size=ROWS)
    manifest = _manifest(settings, specs, _crc(path)).model_dump_json()
    store.write_bytes("datasets/plan/manifest.json", manifest.encode())


def _rows(first: int, settings: Settings, specs: list[ArraySpec]) -> pa.Table:
    """The episodes from `first` on, as many as a row group holds."""
    import pyarrow as pa

    random = np.random.default_rng(first)
    numbers = np.arange(first, min(first + ROWS, settings.episodes))
    columns = {
        "episode": numbers,
        "shard": numbers // EPISODES_PER_SHARD,
        "length": np.full(len(numbers), settings.frames),
        "digest": [random.bytes(16).hex() for _ in numbers],
        "meta": [f'{{"seed": {number}}}' for number in numbers.tolist()],
        "split": random.choice(SPLITS, len(numbers), p=(0.8, 0.1, 0.1)),
    }
    for spec in specs:
        chunks = len(spec.spans(settings.frames))
        sizes = random.integers(*(CHUNK_BYTES if spec.chunk else SMALL_BYTES), len(numbers) * chunks)
        ends = np.arange(len(numbers) + 1, dtype=np.int32) * chunks
        crcs = random.integers(0, 2**32, len(sizes))
        for part, values in (("offset", np.cumsum(sizes) - sizes), ("size", sizes), ("crc", crcs)):
            columns[f"{spec.name}_{part}"] = pa.ListArray.from_arrays(ends, values)
    return pa.table(columns)


def _crc(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(2**24):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _manifest(settings: Settings, specs: list[ArraySpec], crc: int) -> Manifest:
    return Manifest(
        name="plan",
        arrays=tuple(specs),
        episodes=settings.episodes,
        frames=settings.episodes * settings.frames,
        shards=-(-settings.episodes // EPISODES_PER_SHARD),
        bytes=0,
        splits={},
        split_rule="at random",
        fps=10.0,
        action_space={},
        pose=["x", "y", "yaw"],
        recipe={},
        fingerprint="",
        index_crc=crc,
    ).sealed()
