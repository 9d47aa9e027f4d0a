"""Shards and foreign files with bytes flipped, overwritten and cut off: an error of ours or the right sample.

Where a format guards its bytes (our datasets, npz), what is read has to be what was written. An mp4, a Parquet page, an
npy in a tar and a dataset of HDF5 carry no checksum: there, what is read and is not what was written has to be what an
independent reader finds in the spoiled file, which knows the format from its own library and nothing of ours.

By hand, 2,000 spoiled inputs of every format: make fuzz
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
from tests.longtake.sources.formats import independent
from tests.longtake.sources.formats.independent import Oracle

CASES = int(os.environ.get("LONGTAKE_FUZZ", "15"))  # of each kind
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


def images(path: Path) -> None:
    for seed in range(2):
        for number, frame in enumerate(files.pictures(seed)):
            files.write(path / f"{seed}/{number}.png", files.png(frame))
        files.write(path / f"{seed}.npz", files.npz(**files.states(seed)))


def hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for seed in range(2):
        with h5py.File(path / f"{seed}.h5", "w") as file:
            file["e/observations"] = files.pictures(seed)
            file["e/actions"] = files.states(seed)["actions"]


FRONT, WRIST = "observation.images.front", "observation.images.wrist"
KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Found], Oracle | None]] = {
    "shards": (ours, read_ours, None),
    "video shards": (video_shards, read_ours, None),
    "memory-maze": (mazes, read_foreign("memory-maze"), None),
    "teco": (teco, read_foreign("teco"), None),
    "folder": (folder, read_foreign("folder", lead="into"), independent.folder),
    "images": (images, read_foreign("images", lead="into"), independent.images),
    "hdf5": (hdf5, read_foreign("hdf5"), independent.hdf5),
    "webdataset": (tars, read_foreign("webdataset", lead="out"), independent.webdataset),
    "lerobot front": (files.lerobot, read_foreign("lerobot", camera=FRONT), independent.lerobot_video(FRONT)),
    "lerobot wrist": (files.lerobot, read_foreign("lerobot", camera=WRIST), independent.lerobot_pictures(WRIST)),
    "lerobot v2.1": (files.lerobot_v21, read_foreign("lerobot"), independent.lerobot_v21),
}
"""How files of a kind are made and read, and an independent reader of those that do not guard their bytes."""


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
    make, read, oracle = KINDS[kind]
    make(tmp_path)
    truth = read(tmp_path)
    assert len(truth) >= 2
    there = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    rng = np.random.default_rng(len(kind))
    whole = cases = 0
    for case in range(CASES):
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
            if key not in truth or digest(episode.arrays()) != digest(truth[key].arrays()):
                assert oracle is not None, f"case {case}: {path.name}, {key}: not what was written"
                frames, actions = oracle(tmp_path, key)
                np.testing.assert_array_equal(episode.frames, frames, f"case {case}: {path.name}, {key}")
                np.testing.assert_array_equal(episode.actions[1:], actions, f"case {case}: {path.name}, {key}")
        path.write_bytes(kept)
    print(f"{kind}: {cases} spoiled files, {cases - whole} noticed, {whole} read as whole")
    assert whole < cases
