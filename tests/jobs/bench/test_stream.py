"""`longtake bench stream`: same clips on both sides, bytes that are counted, memory of all processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.jobs.bench.mosaic import beside
from longtake.jobs.bench.stream import Clips, Settings, _collate, bytes_read_over_used, footprint, plan_of, written
from longtake.storage.store import open_store
from longtake.streaming.clips import load_clips

SMALL = Settings(episodes=6, frames=128, edge=16, clip=32, clips=4)


def test_both_sides_give_the_same_clips_and_read_little_more_than_they_need(tmp_path: Path) -> None:
    data = written(open_store(tmp_path), SMALL)
    plan = plan_of(data, SMALL)
    items = Clips(data, plan, 12)
    theirs, ours = _collate([items[n] for n in range(4, 8)]), load_clips(data, plan.batch(1))
    for name in ("frames", "actions", "pose", "episode", "start"):
        np.testing.assert_array_equal(theirs[name], getattr(ours, name))
    assert 0.9 < bytes_read_over_used(data, plan) < 1.3
    unaligned = plan_of(data, SMALL.model_copy(update={"clip": 16, "clips": 8}))
    assert bytes_read_over_used(data, unaligned) > 1.4  # a chunk is 32 frames


def test_the_footprint_counts_children_and_shared_pages_once() -> None:
    before = footprint()
    child = subprocess.Popen([sys.executable, "-c", "x = bytes(range(256)) * 2**18; print(1, flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    grown = footprint() - before
    child.communicate(b"\n")
    assert 64e6 < grown < 110e6


def test_mosaicml_streaming_is_left_out_unless_a_python_has_it(tmp_path: Path) -> None:
    data = written(open_store(tmp_path), SMALL)
    with beside("", data, 32, 4, ready=1, steps=1) as contestants:
        assert not contestants
    for python, words in (("nowhere/python", "does not start"), (sys.executable, "No module named 'streaming'")):
        with pytest.raises(UserError, match=f"stream.mosaic: {python}.*{words}"), beside(python, data, 32, 4, 1, 1):
            pass
