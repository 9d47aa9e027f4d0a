"""Shards and foreign files with bytes flipped, overwritten and cut off: an error of ours or the right sample.

Where a format guards its bytes (our datasets, npz), what is read has to be what was written. An mp4, a Parquet page and
an npy in a tar carry no checksum: there, what is read has to be an episode of the right length, if it is one.

By hand: LONGTAKE_FUZZ=500 pytest tests/longtake/datasets/test_fuzz.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.dataset import CorruptData, Dataset
from longtake.datasets.episode import Episode, faults
from longtake.datasets.verify import damage
from longtake.datasets.writer import DatasetWriter, digest
from longtake.errors import UserError
from longtake.sources.formats import formats
from longtake.sources.formats.base import Framing, Refused, attempt
from longtake.storage.store import open_store
from tests.longtake.sources.formats import foreign_files as files

CASES = int(os.environ.get("LONGTAKE_FUZZ", "120"))
Found = dict[str, Episode]


def ours(path: Path) -> None:
    making = DatasetWriter(
        open_store(path), "toy", recipe={}, fps=5.0, action_space={"a": "any"}, pose=None, codec="zlib", chunk=5
    )
    for shard in range(2):
        making.write_shard(
            shard,
            [
                Episode(files.pictures(2 * shard + i, size=6), np.arange(12) % 4 - 1, labels={"room": np.arange(12)})
                for i in range(2)
            ],
        )
    making.finalize(2)


def video_shards(path: Path) -> None:
    making = DatasetWriter(
        open_store(path), "toy", recipe={}, fps=5.0, action_space={"a": "any"}, pose=None, codec="video", chunk=5
    )
    making.write_shard(0, [Episode(files.calm(i), np.arange(12) % 4 - 1) for i in range(3)])
    making.finalize(1)


def read_ours(path: Path) -> Found:
    data, found = Dataset(open_store(path), "toy"), {}
    broken = list(damage(data))
    for number in range(len(data.index)):
        try:
            found[str(number)] = data.read(number, labels=True)
        except CorruptData:
            assert any(f"episode {number}," in line or "the file is gone" in line for line in broken)
    return found


def read_foreign(kind: str, **settings: object) -> Callable[[Path], Found]:
    def read(path: Path) -> Found:
        format_, place, found = formats()[kind], open_store(path), {}
        config = format_.config(**settings)
        for item in format_.listing(config, place).items:
            try:
                found[item.key] = attempt(lambda item=item: format_.read(config, place, item), Framing())  # type: ignore[misc]
            except Refused:
                continue
        return found

    return read


def mazes(path: Path) -> None:
    for seed in range(3):
        files.write(path / f"{seed}.npz", files.npz(**files.memory_maze(seed)))


def teco(path: Path) -> None:
    for seed in range(3):
        files.write(path / f"train/0/{seed}.npz", files.npz(**files.teco(seed)))


def folder(path: Path) -> None:
    for seed in range(2):
        files.mp4(path / f"{seed}.mp4", files.pictures(seed), crf="25")
        files.write(path / f"{seed}.npz", files.npz(**files.states(seed)))


def tars(path: Path) -> None:
    files.tar(path / "a.tar", {str(n): files.webdataset_sample(n) for n in range(3)})


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Found], bool]] = {
    "shards": (ours, read_ours, True),
    "video shards": (video_shards, read_ours, True),
    "memory-maze": (mazes, read_foreign("memory-maze"), True),
    "teco": (teco, read_foreign("teco"), True),
    "folder": (folder, read_foreign("folder", lead="into"), False),
    "webdataset": (tars, read_foreign("webdataset", lead="out"), False),
    "lerobot front": (files.lerobot, read_foreign("lerobot", camera="observation.images.front"), False),
    "lerobot wrist": (files.lerobot, read_foreign("lerobot", camera="observation.images.wrist"), False),
}


def spoil(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes flipped, a stretch overwritten, cut out, or everything behind a place gone."""
    raw = bytearray(data)
    at = int(rng.integers(len(raw)))
    match int(rng.integers(5)):
        case 0:
            raw[at] ^= 1 << int(rng.integers(8))
        case 1:
            for place in rng.integers(len(raw), size=8):
                raw[place] = int(rng.integers(256))
        case 2:
            raw[at : at + 64] = rng.bytes(min(64, len(raw) - at))
        case 3:
            del raw[at : at + int(rng.integers(1, 40))]
        case _:
            del raw[at:]
    return bytes(raw)


@pytest.mark.timeout(120 + CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_files_give_an_error_or_the_right_sample(kind: str, tmp_path: Path) -> None:
    make, read, guarded = KINDS[kind]
    make(tmp_path)
    truth = read(tmp_path)
    assert len(truth) >= 2
    there = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    rng = np.random.default_rng(len(kind))
    whole = cases = 0
    for case in range(-(-CASES // len(KINDS))):
        path = there[case % len(there)]
        kept = path.read_bytes()
        path.write_bytes(spoil(kept, rng))
        try:
            found = read(tmp_path)
        except UserError:
            found = {}
        cases, whole = cases + 1, whole + (len(found) == len(truth))
        for key, episode in found.items():
            assert not faults(episode), f"case {case}: {path.name}"
            if guarded:
                assert digest(episode.arrays()) == digest(truth[key].arrays()), f"case {case}: {path.name}, {key}"
            elif key in truth:
                assert len(episode) == len(truth[key]), f"case {case}: {path.name}, {key}"
        path.write_bytes(kept)
    print(f"{kind}: {cases} spoiled files, {cases - whole} noticed, {whole} read as whole")
    assert whole < cases
