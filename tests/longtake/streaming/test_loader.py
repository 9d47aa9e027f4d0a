"""Batches as they are read: the same in any world and after any restart, and what cannot be read is replaced."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.datasets.dataset import CorruptData, Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.mixture import Mixture, open_data, whole_weights
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.storage.store import open_store
from longtake.streaming.clips import load_clips
from longtake.streaming.loader import _Loader, batches, fail_if_too_many_replaced, local_batches
from longtake.streaming.plan import Plan, rank_slice
from tests.longtake.streaming.numbered import numbered, train_plan


def test_a_mixture_of_clips_uses_either_half_of_what_it_has(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan = Plan.of(data, "train", stages=[(None, 32)], frames_per_step=512, base_segment=8, seed=0, clip="mixed")
    kinds: Counter[str] = Counter()
    begins = set()
    for step in range(12):
        batch = plan.batch(step)
        frames = load_clips(data, batch).frames[..., 0, 0, 1]
        np.testing.assert_array_equal(frames, batch.start[:, None] + batch.order)
        for order, start in zip(batch.order, batch.start.tolist(), strict=True):
            forward, back = (order == np.arange(32)).all(), (order == order[::-1]).all()
            kinds["forward" if forward else "back" if back else "revisit"] += 1
            begins.add((start % 32, forward))
    assert begins == {(0, True), (0, False), (16, False)}
    assert kinds["revisit"] > kinds["forward"] > 20 < kinds["back"] and sum(kinds.values()) == 192


def test_local_batches_resume_anywhere_and_agree_over_worlds(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan = train_plan(data)
    whole = dict(local_batches(data, plan, 0, 1, 0, 10))
    late = dict(local_batches(data, plan, 0, 1, 5, 10))
    assert list(whole) == list(range(10)) and list(late) == list(range(5, 10))
    ranks = [dict(local_batches(data, plan, rank, 3, 5, 10)) for rank in range(3)]
    for step in late:
        np.testing.assert_array_equal(whole[step].frames, late[step].frames)
        np.testing.assert_array_equal(whole[step].frames, np.concatenate([r[step].frames for r in ranks]))
        assert sum(r[step].weight for r in ranks) == pytest.approx(1)


@pytest.mark.parametrize(("together", "rank"), [(2, 0), (3, 1), (16, 0)])
def test_steps_that_are_handed_over_together_are_the_same(tmp_path: Path, together: int, rank: int) -> None:
    data = numbered(tmp_path)
    path = tmp_path / "datasets/numbered/shards/00000.shard"
    path.write_bytes(path.read_bytes()[:-2000])  # so that some are replaced
    plan = train_plan(data)
    expected = dict(local_batches(data, plan, rank, 2, 1, 14))
    blocks = list(_Loader(data, plan, rank, 2, together).load(range(1, 14)))
    assert [step for steps, _ in blocks for step in steps] == list(expected)
    assert not [steps for steps, _ in blocks if 5 in steps and 6 in steps]  # longer clips from step 6 on
    assert max(len(steps) for steps, _ in blocks) == min(together, 8)
    for steps, rows in blocks:
        for row, step in enumerate(steps):
            assert set(rows) == set(vars(expected[step])) - {"labels"}
            for name in rows.keys() - {"bytes_read"}:
                np.testing.assert_array_equal(rows[name][row], getattr(expected[step], name))
    assert any(batch.replaced.any() for batch in expected.values())


def test_a_clip_that_cannot_be_read_ends_the_task_without_waiting_for_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = numbered(tmp_path)
    reads: list[int] = []

    def read(*_: Any, **__: Any) -> Episode:
        reads.append(1)
        time.sleep(0.01 * (len(reads) > 1))
        raise OSError("the storage is gone")

    monkeypatch.setattr(Dataset, "read", read)
    loader = _Loader(
        data, Plan.of(data, "train", stages=[(None, 8)], frames_per_step=256, base_segment=8, seed=0), 0, 1, 16
    )
    with pytest.raises(OSError, match="gone"):
        next(loader.load(range(64)))
    assert len(reads) < 16 * 32


def test_a_corrupt_clip_is_replaced_by_the_same_one_in_any_world(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = numbered(tmp_path)
    plan = train_plan(data)
    path = tmp_path / "datasets/numbered/shards/00000.shard"
    path.write_bytes(path.read_bytes()[:8])
    batch = next(b for b in map(plan.batch, range(9)) if (b.episode < 5).any())
    with pytest.raises(CorruptData):
        load_clips(data, batch)
    with caplog.at_level(logging.WARNING, "longtake.streaming.loader"):
        whole = load_clips(data, batch, replace=plan.replacement)
    assert len(caplog.records) == whole.replaced.sum()
    halves = [load_clips(data, rank_slice(batch, rank, 2), replace=plan.replacement) for rank in range(2)]
    for name in ("frames", "replaced", "episode", "start"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(half, name) for half in halves]))
    assert whole.replaced.any() and (whole.episode >= 5).all()


def test_too_many_replaced_clips_end_the_training(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan = train_plan(data)
    path = tmp_path / "datasets/numbered/shards/00000.shard"
    path.write_bytes(path.read_bytes()[:8])
    clips = dict(local_batches(data, plan, 0, 1, 0, 6))
    hit = sum(int((batch.replaced > 0).sum()) for batch in clips.values())
    assert len(list(fail_if_too_many_replaced(clips.items(), plan, 1, share=1.0))) == 6 and hit > 2
    with pytest.raises(UserError, match=r"clips could not be read and were replaced, more than data.max_replaced=0.05"):
        list(fail_if_too_many_replaced(clips.items(), plan, 1, share=0.05))


def test_a_mixture_reads_from_each_by_weight(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    parts = [numbered(tmp_path, name="one"), numbered(tmp_path, episodes=20, name="other")]
    data = open_data(store, {"one": 3, "other": 1.5})
    plan = Plan.of(data, "train", stages=[(None, 8)], frames_per_step=24, base_segment=8, seed=0)
    assert isinstance(data, Mixture) and data.weights == (2, 1)
    batch = plan.batch(3)
    clips = load_clips(data, batch)
    part = data.part_of(batch.episode)
    assert part.tolist() == [0, 0, 1]
    for n, (of, episode) in enumerate(zip(part, batch.episode, strict=True)):
        own = parts[of].read(int(episode - 10 * of), int(batch.start[n]), int(batch.start[n]) + 8)
        np.testing.assert_array_equal(clips.frames[n], own.frames)
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint == data.fingerprint != parts[0].fingerprint


def test_datasets_of_different_kinds_do_not_mix(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    numbered(tmp_path, name="one")
    making = DatasetWriter(store, "big", recipe={}, fps=5.0, action_space={"a": "any"}, pose=None)
    making.write_shard(0, [Episode(np.full((8, 4, 4, 3), n, np.uint8), np.arange(8)) for n in range(4)])
    making.finalize(1)
    with pytest.raises(UserError) as caught:
        open_data(store, {"one": 1, "big": 1})
    assert "big cannot be mixed with one: frames" in str(caught.value) and "discrete actions 8" in str(caught.value)
    assert "big cannot be mixed with one: fps 5.0 instead of 1.0" in str(caught.value)
    with pytest.raises(UserError, match="did you mean one"):
        open_data(store, {"one": 1, "onr": 1})
    with pytest.raises(UserError, match="leave it out"):
        whole_weights([1, 1e-6])


def test_closing_early_ends_the_thread(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    stream = local_batches(data, train_plan(data), 0, 1, 0, 1000)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clips")]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_ray_data_gives_the_same_batches_in_order(tmp_path: Path) -> None:
    from longtake.cluster.launch import launch

    data = numbered(tmp_path)
    plan = train_plan(data)
    expected = dict(local_batches(data, plan, 1, 2, 3, 12))
    with launch(cpus=2, object_store_mb=100):
        got = dict(batches(data, plan, 1, 2, 3, 12))
    assert list(got) == list(expected)
    for step, batch in got.items():
        assert batch.frames.flags.writeable
        for name in vars(batch).keys() - {"bytes_read"}:  # that follows from what was read ahead meanwhile
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected[step], name))


def test_of_a_long_index_only_the_part_that_is_asked_for_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbered(tmp_path / "whole")
    monkeypatch.setattr("longtake.datasets.index.ROWS", 3)
    cut_up = numbered(tmp_path / "parts")
    assert cut_up._index._file.num_row_groups == 4
    first = cut_up.read(7, 8, 24)
    assert cut_up._index._places.keys() == {("frames", 2), ("actions", 2), ("pose", 2)}
    np.testing.assert_array_equal(first.frames[:, 0, 0, 1], np.arange(8, 24))
    for episode in range(10):
        np.testing.assert_array_equal(cut_up.read(episode).frames, whole.read(episode).frames)
        assert cut_up.read(episode).meta == whole.read(episode).meta
