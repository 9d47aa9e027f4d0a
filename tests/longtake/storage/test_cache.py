"""The local copy of what an object storage holds: never other bytes than are there, never more than allowed."""

from __future__ import annotations

import os
import pickle
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from longtake.datasets import dataset as episodes
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Chunk
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.storage import cache
from longtake.storage.cache import Cache
from longtake.storage.store import Store, open_store
from longtake.streaming.clips import load_clips
from longtake.streaming.loader import local_batches
from longtake.streaming.plan import Plan

SIZE = 8192
GB = 10**9


class Storage:
    """A shard of random bytes, which counts how often it is read."""

    def __init__(self, chunks: int = 8, seed: int = 0) -> None:
        self.data = np.random.default_rng(seed).bytes(chunks * SIZE)
        cuts = range(0, len(self.data), SIZE)
        self.chunks = [Chunk(at, SIZE, zlib.crc32(self.data[at : at + SIZE])) for at in cuts]
        self.reads = self.bytes_read = 0

    def through(self, kept: Cache, first: int, last: int) -> None:
        """Chunks first to last, through the cache."""
        offset, size = first * SIZE, (last - first + 1) * SIZE

        def fetch(begin: int, size: int) -> bytes:
            self.reads += 1
            self.bytes_read += size
            return self.data[begin : begin + size]

        name, wanted = "datasets/x/shards/00000.shard", self.chunks[first : last + 1]
        found, begin, _ = kept.get(name, offset, size, wanted, fetch)
        assert found[offset - begin :][:size] == self.data[offset : offset + size]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGTAKE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "BLOCK", SIZE)
    return tmp_path / "kept"


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.shard"))


def test_what_was_read_is_not_asked_for_again_and_nothing_else_is_taken_for_it(folder: Path) -> None:
    storage, kept = Storage(), Cache("a dataset", GB)
    storage.through(kept, 5, 6)
    storage.through(kept, 5, 6)
    assert storage.reads == 1
    storage.through(kept, 4, 6)  # the first of them is a hole
    assert storage.reads == 2
    storage.through(Cache("a dataset", GB), 4, 5)  # as another process would
    assert storage.reads == 2
    (copy,) = copies(folder)
    assert copy.stat().st_blocks * 512 < copy.stat().st_size  # sparse


def test_damaged_and_half_written_copies_are_read_from_the_storage_again(folder: Path) -> None:
    storage, kept = Storage(), Cache("a dataset", GB)
    storage.through(kept, 0, 7)
    (copy,) = copies(folder)
    whole = copy.read_bytes()
    for broken in (whole[:100] + b"?" + whole[101:], whole[: 7 * SIZE + 9], b""):
        copy.write_bytes(broken)
        before = storage.reads
        storage.through(kept, 0, 7)
        storage.through(kept, 0, 7)
        assert storage.reads == before + 1
        assert copy.read_bytes() == whole


def test_another_dataset_is_another_copy() -> None:
    one, other = Storage(seed=1), Storage(seed=2)
    one.through(Cache("one", GB), 0, 7)
    other.through(Cache("other", GB), 0, 7)
    assert (one.reads, other.reads) == (1, 1)


def test_many_threads_fill_one_copy() -> None:
    storage, kept = Storage(chunks=64), Cache("a dataset", GB)
    spans = [(first, min(63, first + length)) for length in (0, 1, 5) for first in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda span: storage.through(kept, *span), spans * 2))
    before = storage.reads
    storage.through(kept, 0, 63)
    assert storage.reads == before


def test_an_epoch_asks_for_little_more_than_every_byte_in_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 4 * SIZE + 100)  # which cuts chunks
    storage, kept = Storage(chunks=64), Cache("a dataset", GB)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: storage.through(kept, number, number), np.random.default_rng(0).permutation(64)))
    assert storage.reads < 32 and storage.bytes_read < 1.5 * 64 * SIZE
    alone = Storage(chunks=64)
    full = Cache("another", 0)
    for number in range(64):
        alone.through(full, number, number)
    assert (alone.reads, alone.bytes_read) == (64, 64 * SIZE)


def test_it_takes_no_more_than_allowed_and_keeps_what_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "COUNTED", SIZE)
    storage, kept = Storage(), Cache("a dataset", 3 * SIZE)
    for number in [*range(8), *range(8)]:
        storage.through(kept, number, number)
    assert storage.reads == 8 + 5
    assert sum(copy.stat().st_blocks * 512 for copy in copies(folder)) <= 3 * SIZE


def test_a_dataset_that_nobody_reads_makes_room_for_another(folder: Path) -> None:
    old, new = Storage(seed=1), Storage(seed=2)
    old.through(Cache("old", 9 * SIZE), 0, 7)
    stranger = folder / "not ours"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("all of it")

    new.through(Cache("new", 9 * SIZE), 0, 7)
    assert len(copies(folder)) == 1  # the old one was read a moment ago, and stays
    (copy,) = copies(folder)
    long_ago = time.time() - 2 * cache.FORGOTTEN_S
    os.utime(copy.parent, (long_ago, long_ago))
    os.utime(stranger, (long_ago, long_ago))

    reading = Cache("old", 9 * SIZE)
    old.through(reading, 0, 7)  # marks it as being read
    new.through(Cache("new", 9 * SIZE), 0, 7)
    assert copies(folder) == [copy]
    os.utime(copy.parent, (long_ago, long_ago))
    new.through(Cache("new", 9 * SIZE), 0, 7)
    assert len(copies(folder)) == 1 and copies(folder) != [copy]
    assert (stranger / "thesis.tex").read_text() == "all of it"
    old.through(reading, 0, 7)  # whose copy is gone: it asks the storage
    assert old.reads == 2


def test_a_full_cache_looks_again_whether_there_is_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "READ_S", 0.0)
    old, new = Storage(seed=1), Storage(seed=2)
    old.through(Cache("old", 9 * SIZE), 0, 7)
    waiting = Cache("new", 9 * SIZE)
    new.through(waiting, 0, 7)
    (copy,) = copies(folder)
    long_ago = time.time() - 2 * cache.FORGOTTEN_S
    os.utime(copy.parent, (long_ago, long_ago))
    new.through(waiting, 0, 7)
    new.through(waiting, 0, 7)
    assert new.reads == 2


def test_a_copy_that_somebody_removed_is_made_again(folder: Path) -> None:
    storage, kept = Storage(), Cache("a dataset", GB)
    for _ in range(3):
        storage.through(kept, 0, 7)
        storage.through(kept, 0, 7)
        shutil.rmtree(folder)
    assert storage.reads == 3


def test_processes_that_make_room_at_the_same_time_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, kept = Storage(), Cache("a dataset", GB)
    (folder / f"longtake-{24 * '0'}").mkdir(parents=True)
    vanishes = Path.glob

    def glob(self: Path, pattern: str) -> list[Path]:
        return [*vanishes(self, pattern), folder / f"longtake-{24 * '1'}"]

    monkeypatch.setattr(Path, "glob", glob)
    storage.through(kept, 0, 7)
    storage.through(kept, 0, 7)
    assert storage.reads == 1


@pytest.mark.parametrize("given", ["kept/here", "~nobody-of-this-name/kept"])
def test_a_place_that_workers_would_not_find_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_CACHE", given)
    with pytest.raises(UserError, match=f"LONGTAKE_CACHE: .*{given}"):
        Cache("a dataset", GB)


def test_a_disk_that_cannot_be_written_is_no_reason_to_fail(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file in its place")
    storage, kept = Storage(), Cache("a dataset", GB)
    for _ in range(3):
        storage.through(kept, 0, 7)
    assert storage.reads == 3
    assert caplog.text.count("takes no more for now") == 1


@pytest.mark.parametrize(("given", "kept"), [("", 0), ("0", 0), ("1.5", 1_500_000_000)])
def test_the_environment_says_how_much(given: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_CACHE_GB", given)
    assert cache.limit() == kept


@pytest.mark.parametrize("given", ["much", "-1", "inf", "nan"])
def test_what_is_no_size_is_told(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_CACHE_GB", given)
    with pytest.raises(UserError, match=f"LONGTAKE_CACHE_GB: '{given}' is no number of gigabytes"):
        cache.limit()


# --- datasets -----------------------------------------------------------------------------------------------


def made(store: Store, seed: int) -> Dataset:
    making = DatasetWriter(store, "toy", recipe={"seed": seed}, fps=9.0, action_space={"a": "any"}, pose=None)
    making.write_shard(0, [episode(seed, number) for number in range(4)])
    return making.finalize(1)


def episode(seed: int, number: int) -> Episode:
    random = np.random.default_rng([seed, number])
    frames = random.integers(0, 256, (70, 4, 5, 3), dtype=np.uint8)
    return Episode(frames, random.normal(size=(70, 2)).astype(np.float32))


def test_clips_of_a_bucket_are_read_from_it_once(bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(open_store(bucket), seed=1)
    for size, asked_again in (("", True), ("1", False)):
        monkeypatch.setenv("LONGTAKE_CACHE_GB", size)
        for again in (False, True):
            episodes._opened.cache_clear()
            data = Dataset(open_store(bucket), "toy")
            monkeypatch.setenv("LONGTAKE_CACHE_GB", "")  # what a process on another machine may have
            sent = pickle.loads(pickle.dumps(data))
            monkeypatch.setenv("LONGTAKE_CACHE_GB", size)
            opened = sent.bytes_read
            for number in range(4):
                found, truth = sent.read(number, 3, 69), episode(1, number)
                np.testing.assert_array_equal(found.frames, truth.frames[3:69])
                np.testing.assert_array_equal(found.actions, truth.actions[3:69])
            assert (sent.bytes_read > opened) == (asked_again or not again)

    assert len(copies(folder)) == 1
    remade = made(open_store(bucket), seed=2)  # in the place of the other, under its name
    np.testing.assert_array_equal(remade.read(0).frames, episode(2, 0).frames)


def test_a_second_epoch_is_the_same_and_reads_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 2**20)
    made(open_store(bucket), seed=3)
    plain = Dataset(open_store(bucket), "toy", cache_bytes=0)
    plan = Plan.of(plain, "train", stages=[(None, 32)], frames_per_step=64, base_segment=32, seed=0, random_start=True)
    for first in (True, False):
        kept = Dataset(open_store(bucket), "toy", cache_bytes=GB)
        opened = kept.bytes_read
        steps = range(6) if first else range(6, 12)  # of another epoch, whose clips begin elsewhere
        batches = list(local_batches(kept, plan, 0, 1, steps.start, steps.stop))
        for step, batch in batches:
            again = load_clips(plain, plan.batch(step), replace=plan.replacement)
            for name in vars(again).keys() - {"bytes_read"}:
                np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))
        assert sum(batch.bytes_read for _, batch in batches) == kept.bytes_read - opened
        assert (kept.bytes_read > opened) == first


def test_a_folder_needs_no_copy(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_CACHE_GB", "1")
    made(open_store(tmp_path / "store"), seed=1).read(0)
    assert not folder.exists()
