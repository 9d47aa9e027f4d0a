"""Spoiled shards and foreign files: an error of ours or the right sample, compared with independent readers.

Where a format guards its bytes (our datasets, npz), what is read has to be what was written. An mp4, a Parquet page, an
npy in a tar and a dataset of HDF5 carry no checksum: there, what is read and is not what was written has to be what an
independent reader finds in the spoiled file, which knows the format from its own library and nothing of ours.

    python -m tests.longtake.datasets.fuzz 2000 [KIND ...]

Every kind runs in a process of its own, which may take so much memory and so many seconds for a file.
"""

from __future__ import annotations

import faulthandler
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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

SHORT = 5  # frames
TOGETHER = 250  # cases in one process
SECONDS = 120  # that one spoiled file may take
MOST_MEMORY = 8 << 30  # of a process: what is claimed has to be refused, not made room for
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
    for seed in range(2):
        files.write(path / f"{seed}.npz", files.npz(**files.memory_maze(seed, SHORT)))


def teco(path: Path) -> None:
    for seed in range(2):
        files.write(path / f"train/0/{seed}.npz", files.npz(**files.teco(seed, SHORT)))


def folder(path: Path) -> None:
    for seed in range(2):
        files.mp4(path / f"{seed}.mp4", files.pictures(seed, SHORT), crf="25")
        files.write(path / f"{seed}.npz", files.npz(**files.states(seed, SHORT)))


def tars(path: Path) -> None:
    files.tar(path / "a.tar", {str(n): files.webdataset_sample(n) for n in range(2)})


def films(path: Path) -> None:
    folder(path)
    pairs = {str(n): {"mp4": path / f"{n}.mp4", "state.npz": path / f"{n}.npz"} for n in range(2)}
    files.tar(
        path / "a.tar", {n: {name: file.read_bytes() for name, file in pair.items()} for n, pair in pairs.items()}
    )
    for pair in pairs.values():
        for file in pair.values():
            file.unlink()


def images(path: Path) -> None:
    for seed in range(2):
        for number, frame in enumerate(files.pictures(seed, SHORT)):
            files.write(path / f"{seed}/{number}.png", files.png(frame))
        files.write(path / f"{seed}.npz", files.npz(**files.states(seed, SHORT)))


def hdf5(path: Path) -> None:
    import h5py

    for seed in range(2):
        with h5py.File(path / f"{seed}.h5", "w") as file:
            file["e/observations"] = files.pictures(seed, SHORT)
            file["e/actions"] = files.states(seed, SHORT)["actions"]


def lerobot(path: Path) -> None:
    files.lerobot(path, (SHORT, 3))


def lerobot_v21(path: Path) -> None:
    files.lerobot_v21(path, (SHORT, 3))


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
    "webdataset mp4": (films, read_foreign("webdataset", lead="into"), independent.webdataset_film),
    "lerobot front": (lerobot, read_foreign("lerobot", camera=FRONT), independent.lerobot_video(FRONT)),
    "lerobot wrist": (lerobot, read_foreign("lerobot", camera=WRIST), independent.lerobot_pictures(WRIST)),
    "lerobot v2.1": (lerobot_v21, read_foreign("lerobot"), independent.lerobot_v21),
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


@dataclass(frozen=True)
class Count:
    """Of spoiled files: how many, and how many of them were read as if nothing were wrong."""

    cases: int
    whole: int


def run(kind: str, root: Path, cases: int, seed: int = 0) -> Count:
    """Spoil one file of a kind after the other. Raises AssertionError for a wrong sample, and whatever readers do."""
    make, read, oracle = KINDS[kind]
    make(root)
    truth = {key: digest(episode.arrays()) for key, episode in read(root).items()}
    assert len(truth) >= 2
    there = sorted(path for path in root.rglob("*") if path.is_file())
    rng, whole = np.random.default_rng([seed, len(kind)]), 0
    for case in range(cases):
        path = there[case % len(there)]
        kept = path.read_bytes()
        path.write_bytes(spoil(kept, rng))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            found = read(root)
        except UserError:
            found = {}
        whole += len(found) == len(truth)
        for key, episode in found.items():
            if truth.get(key) != digest(episode.arrays()):
                compare(episode, root, key, oracle, f"{kind}, case {case} of seed {seed}: {path.name}, {key}")
        faulthandler.cancel_dump_traceback_later()
        path.write_bytes(kept)
    return Count(cases, whole)


def compare(episode: Episode, root: Path, key: str, oracle: Oracle | None, case: str) -> None:
    """Raises AssertionError for an episode that is not what an independent reader finds."""
    assert not faults(episode), case
    assert oracle is not None, f"{case}: not what was written"
    frames, actions = oracle(root, key)
    np.testing.assert_array_equal(episode.frames, frames, case)
    np.testing.assert_array_equal(episode.actions[1:], actions, case)


def main(cases: int, kinds: list[str]) -> int:
    """All kinds, some cases in a process of its own at a time; returns how many of these failed."""
    failed = 0
    for seed, begin in enumerate(range(0, cases, TOGETHER)):
        for kind in kinds or KINDS:
            asked = [kind, str(min(TOGETHER, cases - begin)), str(seed)]
            command = [sys.executable, "-m", "tests.longtake.datasets.fuzz", "--one", *asked]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            failed += done.returncode != 0
            said = done.stdout if done.returncode == 0 else f"{' '.join(asked)}: FAILED\n{done.stderr[-3000:]}"
            print(said.strip(), flush=True)
    return failed


def one(kind: str, cases: int, seed: int) -> None:
    """A kind in this process, with a limit to its memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        count = run(kind, Path(folder), cases, seed)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{kind}: {count.cases} spoiled files, {count.cases - count.whole} noticed, {count.whole} read as whole, "
        f"0 wrong, 0 traces, 0 hangs; {used.ru_maxrss >> 10} MB, {used.ru_utime:.0f} s"
    )


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main(int(sys.argv[1]), sys.argv[2:]) > 0)
