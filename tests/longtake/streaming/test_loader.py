"""The plan is arithmetic: every frame exactly once an epoch, whatever the workers, restarts and stages."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.datasets.dataset import CorruptData, Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.mixture import Mixture, open_data, whole_weights
from longtake.datasets.shard import Codec
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.storage.store import open_store
from longtake.streaming.clips import load_clips
from longtake.streaming.loader import _Loader, batches, fail_if_too_many_replaced, local_batches
from longtake.streaming.plan import Clip, Plan, rank_slice


def plan_of(lengths: list[int], stages: list[tuple[int | None, int]], per_step: int, base: int, **more: Any) -> Plan:
    return Plan(np.array(lengths), stages, per_step, base, seed=3, **more)


def frames_seen(plan: Plan, steps: range, world: int = 1) -> Counter[tuple[int, int]]:
    seen: Counter[tuple[int, int]] = Counter()
    for step in steps:
        for rank in range(world):
            share = rank_slice(plan.batch(step), rank, world)
            for episode, start in zip(share.episode.tolist(), share.start.tolist(), strict=True):
                seen.update((episode, t) for t in range(start, start + share.source))
    return seen


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(8, 70), min_size=1, max_size=8),
    st.sampled_from([(4, 8, 2), (8, 16, 4), (16, 16, 16), (8, 8, 16)]),
    st.integers(1, 4),
    st.sampled_from(["forward", "palindrome", "revisit"]),
    st.integers(1, 12),
)
def test_exactly_once_per_epoch_over_ranks_and_stage_borders(
    lengths: list[int], clips: tuple[int, int, int], world: int, clip: Clip, border: int
) -> None:
    first, last, base = clips
    fold = 1 if clip == "forward" else 2
    lengths = [*lengths, 64]
    per_step = fold * first * last * world
    plan = plan_of(lengths, [(border, first * fold), (None, last * fold)], per_step, base, clip=clip)
    epoch = plan.units * plan.unit
    a_step = per_step // fold
    # A number of steps that ends on an epoch's border: every usable frame the same number of times.
    steps = np.lcm(epoch, a_step) // a_step
    if steps > 400:
        steps = 400
    seen = frames_seen(plan, range(steps), world)
    usable = {(e, t) for e, n in enumerate(lengths) for t in range(n // plan.unit * plan.unit)}
    assert set(seen) <= usable and sum(seen.values()) == steps * a_step
    assert max(seen.values()) - min(seen[frame] for frame in usable) <= (0 if (steps * a_step) % epoch == 0 else 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(1, 8), st.integers(1, 8))
def test_any_world_cuts_the_same_batch(step: int, world: int, other: int) -> None:
    plan = plan_of([64, 100, 33], [(10, 8), (None, 16)], 128, 8)
    whole = plan.batch(step)
    for workers in (world, other):
        shares = [rank_slice(whole, rank, workers) for rank in range(workers)]
        for field in ("episode", "start", "slot"):
            joined = np.concatenate([getattr(share, field) for share in shares])
            np.testing.assert_array_equal(joined, getattr(whole, field))
        sizes = [len(share.slot) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_step_needs_no_history() -> None:
    fresh, used = (plan_of([64] * 20, [(None, 16)], 64, 16) for _ in range(2))
    for step in range(50):
        used.batch(step)
    np.testing.assert_array_equal(fresh.batch(49).episode, used.batch(49).episode)
    np.testing.assert_array_equal(fresh.batch(49).start, used.batch(49).start)


@pytest.mark.parametrize("clip", ["revisit", "mixed"])
def test_orders_need_no_history_and_no_world(clip: Clip) -> None:
    whole = plan_of([64] * 20, [(3, 16), (None, 32)], 128, 16, clip=clip)
    fresh = pickle.loads(pickle.dumps(whole))
    for step in range(6):
        batch = whole.batch(step)
        shares = [rank_slice(fresh.batch(step), rank, 3) for rank in range(3)]
        np.testing.assert_array_equal(np.concatenate([share.order for share in shares]), batch.order)
    other = Plan(np.array([64] * 20), [(3, 16), (None, 32)], 128, 16, seed=4, clip=clip)
    assert (other.batch(5).order != batch.order).any()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = np.full(64, 16)
    one = Plan(lengths, [(None, 16)], 16 * 64, 16, seed=1)
    other = Plan(lengths, [(None, 16)], 16 * 64, 16, seed=2)
    assert one.steps_per_epoch == 1
    orders = {tuple(plan.batch(step).episode) for plan in (one, other) for step in range(3)}
    assert len(orders) == 6


def test_wrong_plans_say_everything_that_is_wrong() -> None:
    with pytest.raises(UserError) as caught:
        plan_of([64], [(None, 24)], 100, 16)
    text = str(caught.value)
    assert "valid clips: 1, 2, 4, 8, 16, 32" in text and "frames_per_step=100" in text
    with pytest.raises(UserError, match="even"):
        plan_of([64], [(None, 15)], 30, 15, clip="palindrome")
    with pytest.raises(UserError, match="no episode is long enough"):
        plan_of([10, 12], [(None, 16)], 64, 16)
    with pytest.raises(UserError, match="last stage"):
        plan_of([64], [(10, 16)], 64, 16)
    with pytest.raises(UserError, match="must rise"):
        plan_of([64], [(10, 16), (5, 16), (None, 16)], 64, 16)
    with pytest.raises(UserError, match="cannot feed 3 workers"):
        rank_slice(plan_of([64], [(None, 16)], 32, 16).batch(0), 0, 3)


def numbered(
    store_path: str | Path,
    episodes: int = 10,
    length: int = 64,
    name: str = "numbered",
    edge: int = 2,
    codec: Codec = "zstd",
) -> Dataset:
    """A dataset whose frames say where they are from: (episode's own number, frame)."""
    about: dict[str, Any] = {"fps": 1, "action_space": {}, "pose": ["x", "y", "yaw"]}
    making = DatasetWriter(open_store(store_path), name, recipe={}, chunk=8, codec=codec, **about)
    for shard in range(2):
        made = []
        for number in range(shard * episodes // 2, (shard + 1) * episodes // 2):
            frames = np.zeros((length, edge, edge, 3), np.uint8)
            frames[..., 0], frames[..., 1] = number, np.arange(length)[:, None, None]
            actions = np.arange(1, length + 1, dtype=np.float32)[:, None]
            made.append(Episode(frames, actions, np.zeros((length, 3), np.float32)))
        making.write_shard(shard, made)
    return making.finalize(2)


def train_plan(data: Dataset, clip: Clip = "forward") -> Plan:
    return Plan.of(data, "train", stages=[(6, 16), (None, 32)], frames_per_step=96, base_segment=8, seed=0,
                   clip=clip)  # fmt: skip


def test_clips_hold_the_planned_frames_of_the_split(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan, train = train_plan(data), set(data.episodes("train")["episode"])
    for step in (0, 7):
        batch = plan.batch(step)
        clips = load_clips(data, batch)
        assert set(batch.episode.tolist()) <= train
        np.testing.assert_array_equal(clips.frames[:, :, 0, 0, 0], batch.episode[:, None].repeat(batch.frames, 1))
        np.testing.assert_array_equal(clips.frames[:, :, 0, 0, 1], batch.start[:, None] + np.arange(batch.frames))
        assert (clips.actions[:, 0] == 0).all()
        np.testing.assert_array_equal(clips.actions[:, 1, 0], batch.start + 2)
        assert clips.weight == 1.0 and clips.slot.tolist() == batch.slot.tolist()


def test_discrete_actions_reach_the_model_as_one_hot(tmp_path: Path) -> None:
    making = DatasetWriter(open_store(tmp_path), "d", recipe={}, fps=1.0, action_space={"a": "any"}, pose=None)
    actions = np.arange(64, dtype=np.int64) % 4 - 1
    making.write_shard(0, [Episode(np.full((64, 2, 2, 3), n, np.uint8), actions, meta={"n": n}) for n in range(4)])
    data = making.finalize(1)
    batch = load_clips(data, train_plan(data).batch(0))
    assert batch.actions.dtype == np.float32 and batch.actions.shape[2] == data.action_dim == 3
    for clip, start in zip(batch.actions, batch.start, strict=True):
        assert not clip[0].any()
        there = actions[start : start + len(clip)]
        np.testing.assert_array_equal(clip[1:].argmax(1)[there[1:] >= 0], there[1:][there[1:] >= 0])
        np.testing.assert_array_equal(clip[1:].sum(1), there[1:] >= 0)


def test_a_palindrome_walks_back_the_way_it_came(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    clips = load_clips(data, train_plan(data, "palindrome").batch(7))
    frames, pose = clips.frames, clips.pose
    assert frames.shape[:2] == (3, 32) and pose.shape == (3, 32, 4)
    np.testing.assert_array_equal(frames, frames[:, ::-1])
    assert (clips.actions[:, 16:] == 0).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_revisit_shows_frames_of_its_first_half_with_their_pose_and_what_led_there(
    tmp_path: Path, stride: int
) -> None:
    data = numbered(tmp_path, length=128)
    plan = Plan.of(data, "train", stages=[(None, 32)], frames_per_step=256, base_segment=8, seed=0,
                   clip="revisit", stride=stride)  # fmt: skip
    orders = set()
    for step in range(4):
        batch = plan.batch(step)
        clips = load_clips(data, batch)
        shown = clips.frames[..., 0, 0, 1].astype(int) - batch.start[:, None]
        np.testing.assert_array_equal(shown, batch.order * stride)
        np.testing.assert_array_equal(batch.order[:, :16], np.arange(16)[None].repeat(8, 0))
        assert batch.order.max() == 15 and batch.order.min() == 0
        np.testing.assert_array_equal(clips.pose[:, 16:], clips.pose[np.arange(8)[:, None], batch.order[:, 16:]])
        follows = np.diff(batch.order) == 1
        led = clips.actions[:, 1:]
        assert (led[~follows] == 0).all() and (led[follows] > 0).all()
        newest = led[..., -1][follows]  # the action of a frame led to it; frame t of an episode has action t + 1
        np.testing.assert_array_equal(newest, (clips.frames[:, 1:, 0, 0, 1][follows]) + 1)
        orders |= {tuple(order) for order in batch.order.tolist()}
    assert len(orders) == 32, "each clip has an order of its own"


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
            assert set(rows) == set(vars(expected[step]))
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


def test_a_stride_stacks_the_actions_between_its_frames(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan = Plan.of(data, "train", stages=[(None, 8)], frames_per_step=24, base_segment=8, seed=0, stride=3)
    batch = plan.batch(1)
    clips = load_clips(data, batch)
    assert clips.frames.shape[:2] == (3, 8) and clips.actions.shape == (3, 8, 3)
    np.testing.assert_array_equal(clips.frames[:, :, 0, 0, 1], batch.start[:, None] + 3 * np.arange(8))
    for actions, start in zip(clips.actions, batch.start, strict=True):
        assert not actions[0].any()
        # Action t of `numbered` is t + 1, and leads into frame t.
        np.testing.assert_array_equal(actions[1], [start + 2, start + 3, start + 4])
        np.testing.assert_array_equal(actions[7], start + 2 + 18 + np.arange(3))


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
    making = DatasetWriter(store, "big", recipe={}, fps=1.0, action_space={"a": "any"}, pose=None)
    making.write_shard(0, [Episode(np.full((8, 4, 4, 3), n, np.uint8), np.arange(8)) for n in range(4)])
    making.finalize(1)
    with pytest.raises(UserError) as caught:
        open_data(store, {"one": 1, "big": 1})
    assert "big cannot be mixed with one: frames" in str(caught.value) and "discrete actions 8" in str(caught.value)
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
    monkeypatch.setattr("longtake.datasets.dataset.ROWS", 3)
    cut_up = numbered(tmp_path / "parts")
    assert cut_up._index._file.num_row_groups == 4
    first = cut_up.read(7, 8, 24)
    assert cut_up._index._places.keys() == {("frames", 2), ("actions", 2), ("pose", 2)}
    np.testing.assert_array_equal(first.frames[:, 0, 0, 1], np.arange(8, 24))
    for episode in range(10):
        np.testing.assert_array_equal(cut_up.read(episode).frames, whole.read(episode).frames)
        assert cut_up.read(episode).meta == whole.read(episode).meta
