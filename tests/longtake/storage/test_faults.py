"""Datasets on an object storage that answers 503, breaks off, cuts short, and goes away."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Codec
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.storage.store import open_store
from longtake.streaming.loader import local_batches
from longtake.streaming.plan import Plan
from tests.fault_proxy import Proxy, proxy
from tests.longtake.streaming.numbered import numbered

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture
def faulty(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the bucket, and the environment that leads through it."""
    with proxy(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


def plan_of(data: Dataset) -> Plan:
    return Plan.of(data, "train", stages=[(None, 16)], frames_per_step=64, base_segment=16, seed=0)


@pytest.mark.parametrize("codec, edge", [("zstd", 2), ("video", 256)])
def test_an_epoch_through_a_bad_line_has_the_same_bytes(
    bucket: str, faulty: Proxy, tmp_path: Path, codec: Codec, edge: int
) -> None:
    line = f"{bucket}/line-{codec}"
    stored, kept = (numbered(place, edge=edge, codec=codec) for place in (line, tmp_path))
    plan = plan_of(kept)
    steps = int(np.ceil(plan.steps_per_epoch))
    faulty.busy, faulty.reset, faulty.cut = 0.2, 0.1, 0.1
    there = Dataset(open_store(line), stored.name)
    assert there.fingerprint == kept.fingerprint
    for (_, far), (_, near) in zip(
        local_batches(there, plan_of(there), 0, 1, 0, steps), local_batches(kept, plan, 0, 1, 0, steps), strict=True
    ):
        assert not far.replaced.any()
        for name in vars(far).keys() - {"bytes_read"}:  # that follows from what was read ahead meanwhile
            np.testing.assert_array_equal(getattr(far, name), getattr(near, name))
    assert min(faulty.counts[fault] for fault in ("busy", "reset", "cut")) > 0


def test_an_epoch_reads_little_more_than_it_uses(bucket: str, faulty: Proxy) -> None:
    """One ranged read per clip, and one per episode for its actions and pose; whole shards never."""
    length, chunk = 128, 16
    store = open_store(f"{bucket}/used")
    making = DatasetWriter(store, "used", recipe={}, fps=1, action_space={}, pose=["x", "y", "yaw"], chunk=chunk)
    for shard in range(2):
        rng = np.random.default_rng(shard)
        made = []
        for _ in range(5):
            frames = rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
            made.append(Episode(frames, np.zeros((length, 2), np.float32), np.zeros((length, 3), np.float32)))
        making.write_shard(shard, made)
    making.finalize(2)
    data = Dataset(open_store(f"{bucket}/used"), "used")
    plan = Plan.of(data, "train", stages=[(None, 32)], frames_per_step=256, base_segment=32, seed=0)
    steps = int(plan.steps_per_epoch)
    data.read(int(plan.batch(0).episode[0]), 0, 1)  # the index and the client are there, as in any later step
    before, used, clips = faulty.counts.copy(), 0, 0
    for _, batch in local_batches(data, plan, 0, 1, 0, steps):
        assert batch.pose is not None
        used += batch.frames.nbytes + batch.actions.nbytes + batch.pose.nbytes
        clips += len(batch.frames)
    read, requests = (faulty.counts[name] - before[name] for name in ("bytes", "requests"))
    print(f"{read} bytes read, {used} used: {read / used:.2f}; {requests} requests for {clips} clips")
    assert used > 500_000 and read / used <= 1.3
    assert requests <= clips + len(data.episodes("train"))


def test_a_server_that_comes_back_is_waited_for(bucket: str, faulty: Proxy) -> None:
    store = open_store(f"{bucket}/gone")
    store.write_bytes("x", b"1234")
    faulty.go()
    began = time.monotonic()
    back = threading.Timer(2, faulty.come)
    back.start()
    assert store.read_range("x", 1, 2) == b"23"
    assert time.monotonic() - began > 1.9
    back.join()


def test_a_server_that_is_gone_for_good_is_named(bucket: str, faulty: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_S3_PATIENCE_S", "1.5")
    store = open_store(f"{bucket}/gone")
    store.write_bytes("x", b"1234")
    faulty.go()
    for call in (
        lambda: store.read_bytes("x"),
        lambda: store.read_range("x", 1, 2),
        lambda: store.write_bytes("y", b""),
        lambda: store.find(""),
    ):
        with pytest.raises(UserError, match=rf"storage at {faulty.url} did not answer for 1.5 s .LONGTAKE_S3_PATIENCE"):
            call()
    with pytest.raises(UserError, match="did not answer when asked"):
        store.require_writable()
    faulty.come()


def test_a_server_that_hangs_is_named(bucket: str, faulty: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_S3_PATIENCE_S", "0.5")
    monkeypatch.setenv("LONGTAKE_S3_TIMEOUT_S", "0.2")
    store = open_store(f"{bucket}/hangs")
    store.write_bytes("x", b"1234")
    faulty.latency_s = 30
    with pytest.raises(UserError, match="did not answer for 0.5 s"):
        store.read_bytes("x")


def test_settings_that_are_no_seconds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_S3_PATIENCE_S", "long")
    with pytest.raises(UserError, match="LONGTAKE_S3_PATIENCE_S: 'long' is no number of seconds"):
        _ = open_store("s3://bucket").fs
