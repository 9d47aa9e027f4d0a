"""`longtake verify` and the moving pictures of `longtake inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longtake.config import build
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs.datasets import inspect, verify
from longtake.jobs.ingest import command as ingest
from longtake.storage.store import open_store
from tests.longtake.sources.formats import foreign_files as files


def toy(path: Path, codec: Any = "zstd") -> Dataset:
    making = DatasetWriter(
        open_store(path), "toy", recipe={}, fps=5.0, action_space={"a": "any"}, pose=None, codec=codec, chunk=8
    )
    for shard in range(3):
        actions = np.arange(12, dtype=np.int64) % 3 - 1
        labels = {"room": np.arange(12)}
        making.write_shard(shard, [Episode(files.pictures(2 * shard + i), actions, labels=labels) for i in range(2)])
    return making.finalize(3)


def test_numbers_are_told_by_column(tmp_path: Path) -> None:
    """Of discrete actions their classes, and how often each; and a histogram that shows where values are."""
    (row,) = inspect._columns(toy(tmp_path))
    name, values, (mean, _, _, _, least, largest) = row
    assert name == "action (class)" and (least, largest) == (-1, 1) and mean == pytest.approx(values.mean())
    assert inspect.histogram(np.array([0.0, 0, 0, 1]), 4) == "█  ▃", "three of four at one end"
    assert inspect.histogram(np.ones(3)) == "always the same" and inspect.histogram(np.empty(0)) == ""
    assert inspect.numbers_table(toy(tmp_path)).row_count == 1


def ingested(folder: Path) -> tuple[Path, Path]:
    """A source of four mazes, one of which cannot be read, and the store with what was made of it."""
    for seed in range(4):
        files.write(folder / f"source/{seed}.npz", files.npz(**files.memory_maze(seed)))
    (folder / "source/bad.npz").write_bytes(b"no npz")
    job = ingest.prepare(
        build(ingest.IngestConfig, {"name": "toy", "path": str(folder / "source"), "source": {"kind": "memory-maze"}})
    )
    store = open_store(folder / "store")
    writer = ingest._writer(job, store)
    writer.claim()
    for shard in range(len(job.shards)):
        ingest.make_shard(job, store.uri, shard)
    ingest._finish(job, store, writer)
    return folder / "source", folder / "store"


def test_a_dataset_is_compared_with_its_source(tmp_path: Path, capsys: Any) -> None:
    source, store = ingested(tmp_path)
    assert verify.main("toy", str(store), str(source)) == 0
    assert f"all as written, and as {source} has them" in capsys.readouterr().out
    files.write(source / "1.npz", files.npz(**{**files.memory_maze(1), "image": files.pictures(9)}))
    (source / "2.npz").unlink()
    (source / "3.npz").write_bytes((source / "3.npz").read_bytes()[:99])
    files.write(source / "new.npz", files.npz(**files.memory_maze(7)))
    files.write(source / "bad.npz", files.npz(**files.memory_maze(8)))
    assert verify.main("toy", str(store), str(source)) == 1
    lines = capsys.readouterr().out.splitlines()
    told = {
        "1.npz": "other frames, actions or labels",
        "2.npz": "gone, and in the dataset",
        "3.npz": "refused now",
        "new.npz": "not in the dataset",
        "bad.npz": "where it was refused",
    }
    for name, why in told.items():
        assert any(f"/{name}: " in line and why in line for line in lines), (name, lines)
    assert lines[-1] == "dataset toy: 5 damaged"
    toy(tmp_path / "other")
    with pytest.raises(UserError, match="was not made by `longtake ingest`"):
        verify.main("toy", str(tmp_path / "other"), str(source))


@pytest.mark.parametrize("codec", ["zstd", "zlib", "video"])
def test_a_whole_dataset(tmp_path: Path, codec: str, capsys: Any) -> None:
    toy(tmp_path, codec)
    assert verify.main("toy", str(tmp_path)) == 0
    assert "6 episodes, 72 frames in 3 shards, all as written" in capsys.readouterr().out


def test_everything_that_is_damaged_is_listed(tmp_path: Path, capsys: Any) -> None:
    data = toy(tmp_path)
    shards = tmp_path / "datasets/toy/shards"
    (shards / "00000.shard").unlink()
    raw = bytearray((shards / "00001.shard").read_bytes())
    raw[int(data.index["frames_offset"][3][1]) + 2] ^= 8
    raw[int(data.index["label.room_offset"][2][0]) + 2] ^= 8
    (shards / "00001.shard").write_bytes(bytes(raw))
    (shards / "00002.shard").write_bytes((shards / "00002.shard").read_bytes() + b"more")
    assert verify.main("toy", str(tmp_path)) == 1
    told = capsys.readouterr().out
    for line in (
        "00000.shard: the file is gone",
        "00001.shard: episode 2, label.room, chunk 0: the checksum",
        "00001.shard: episode 3, frames, chunk 1: the checksum",
        "4 damaged",
    ):
        assert line in told
    assert "00002.shard" in told and "the index knows of" in told


@pytest.mark.parametrize("name", ["index.parquet", "manifest.json"])
def test_a_damaged_index_is_damage_and_an_unknown_dataset_is_not(tmp_path: Path, name: str, capsys: Any) -> None:
    toy(tmp_path)
    path = tmp_path / "datasets/toy" / name
    path.write_bytes(path.read_bytes()[:-9])
    assert verify.main("toy", str(tmp_path)) == 1
    assert f"{name}: damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown dataset"):
        verify.main("nothing", str(tmp_path))


def test_moving_pictures(tmp_path: Path) -> None:
    toy(tmp_path)
    inspect.main("toy", str(tmp_path), str(tmp_path / "sheet.png"), str(tmp_path / "film.mp4"))
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.frames, stream.height, stream.width, float(stream.average_rate or 0)) == (12, 256, 1024, 5)
