"""`longtake verify` and the moving pictures of `longtake inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs import inspect, verify
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
