"""The plan over restarts, strides, random starts and several datasets; and over a million episodes."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import UserError
from longtake.streaming.plan import Plan, _deal, _dealt, rank_slice
from longtake.streaming.shuffles import Locality, locally_shuffled, shuffled


def segments(plan: Plan, steps: range, world: int) -> Counter[tuple[int, int]]:
    """The base segments that the ranks of a world see in these steps."""
    seen: Counter[tuple[int, int]] = Counter()
    base = plan.base_segment
    for step in steps:
        for rank in range(world):
            share = rank_slice(plan.batch(step), rank, world)
            for episode, start in zip(share.episode.tolist(), share.start.tolist(), strict=True):
                seen.update((episode, t // base) for t in range(start, start + share.source, min(base, share.source)))
    return seen


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_every_segment_once_whatever_stops_the_training_and_whoever_goes_on(data: st.DataObject) -> None:
    base, stride = data.draw(st.sampled_from([2, 4, 8])), data.draw(st.sampled_from([1, 2]))
    early, late = data.draw(st.sampled_from([base, 2 * base])), data.draw(st.sampled_from([base, 2 * base, 4 * base]))
    lengths = [*data.draw(st.lists(st.integers(1, 120), max_size=12)), 8 * base * stride]
    worlds = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    clips = max(worlds) * data.draw(st.integers(1, 3))
    stages = [(data.draw(st.integers(1, 9)), early), (None, late)]
    per_step = max(early, late) * clips
    plan = Plan(np.array(lengths), stages, per_step, base, seed=data.draw(st.integers(0, 99)), stride=stride)
    steps = int(plan.units * plan.unit / np.gcd(plan.units * plan.unit, per_step * stride))
    epochs = steps * per_step * stride // (plan.units * plan.unit)
    ends = sorted(data.draw(st.integers(0, steps)) for _ in worlds[1:])
    seen: Counter[tuple[int, int]] = Counter()
    for world, first, last in zip(worlds, [0, *ends], [*ends, steps], strict=True):
        seen += segments(plan, range(first, last), world)
    whole = {(e, s) for e, n in enumerate(lengths) for s in range(n // plan.unit * plan.unit // base)}
    assert set(seen) == whole and set(seen.values()) == {epochs}


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_the_shuffle_is_a_permutation(size: int, seed: int) -> None:
    keys = np.random.SeedSequence(seed).generate_state(12, np.uint64)
    assert sorted(shuffled(np.arange(size), size, keys)) == list(range(size))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 2000), st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32))
def test_the_local_shuffle_is_a_permutation(size: int, group: int, together: int, seed: int) -> None:
    keys = np.random.SeedSequence(seed).generate_state(12, np.uint64)
    assert sorted(locally_shuffled(np.arange(size), size, group, together, keys)) == list(range(size))


def test_with_locality_few_groups_are_open_at_a_time() -> None:
    """An epoch still gives every unit once; a window of it is of few neighbourhoods, and they come in another order."""
    plain, local = (
        Plan(np.full(400, 128), [(None, 16)], 64, 16, seed=3, locality=locality) for locality in (None, Locality(10, 2))
    )

    def episodes(plan: Plan, steps: range) -> np.ndarray:
        return np.concatenate([plan.batch(step).episode for step in steps])

    steps = int(local.steps_per_epoch)
    assert np.bincount(episodes(local, range(steps))).tolist() == [8] * 400
    window = range(0, 160 // 4)  # 2 groups of 10 episodes of 8 units, 4 clips a step
    assert len(np.unique(episodes(local, window) // 10)) == 2 < 30 < len(np.unique(episodes(plain, window) // 10))
    first, second = episodes(local, range(steps)), episodes(local, range(steps, 2 * steps))
    assert (first != second).mean() > 0.9, "every epoch has an order of its own"
    assert len(np.unique(episodes(local, range(2)) // 10)) == 2, "groups are mixed within a batch or two"


def test_the_shuffle_leaves_no_order_behind() -> None:
    size, draws = 97, 400
    places = np.array(
        [shuffled(np.arange(size), size, np.random.SeedSequence(s).generate_state(12, np.uint64)) for s in range(draws)]
    )
    counts = np.stack([np.bincount(column, minlength=size) for column in places.T])
    chi = ((counts - draws / size) ** 2 / (draws / size)).sum() / (size - 1) ** 2
    assert 0.9 < chi < 1.1  # every unit is as often at every place
    steps = np.diff(places, axis=1) % size
    assert np.bincount(steps.ravel(), minlength=size)[1:].max() < 1.3 * draws  # and no neighbour stays one


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 10**9))
def test_turns_are_dealt_evenly_without_gaps(weights: list[int], first: int) -> None:
    parts, turns = _deal(np.arange(first, first + 60), weights)
    for part, weight in enumerate(weights):
        mine = turns[parts == part]
        before = _dealt(first, weights)[part]
        np.testing.assert_array_equal(mine, before + np.arange(len(mine)))
        assert abs(before - first * weight / sum(weights)) < len(weights)
        assert abs(len(mine) - 60 * weight / sum(weights)) < len(weights) + 1
    assert sum(_dealt(first, weights)) == first


def mixed(**more: object) -> Plan:
    lengths = np.array([64] * 6 + [40] * 10)
    part = np.array([0] * 6 + [1] * 10)
    return Plan(lengths, [(None, 8)], 8 * 12, 8, seed=5, part=part, weights=(2, 1), **more)  # type: ignore[arg-type]


def test_each_dataset_of_a_mixture_has_epochs_of_its_own() -> None:
    plan = mixed()
    seen = {0: Counter[tuple[int, int]](), 1: Counter[tuple[int, int]]()}
    for step in range(6):
        batch = plan.batch(step)
        for episode, start in zip(batch.episode.tolist(), batch.start.tolist(), strict=True):
            seen[int(episode >= 6)][episode, start] += 1
    assert sum(seen[0].values()) == 48 and set(seen[0].values()) == {1} and len(seen[0]) == 48
    assert sum(seen[1].values()) == 24 and set(seen[1].values()) == {1}
    assert plan.epochs(6) == [(2 / 3, 1.0), (1 / 3, 24 / 50)]
    for slot in range(12):
        episode, _ = plan.replacement(3, slot, 0)
        assert (episode >= 6) == (plan.batch(3).episode[slot] >= 6)


def test_random_starts_move_with_the_epoch_and_stay_inside() -> None:
    lengths = np.array([100, 33, 32])
    plan = Plan(lengths, [(None, 16)], 16, 16, seed=1, random_start=True)
    assert plan.units == 5 + 1 + 1  # the last two would lose a half or everything
    starts = []
    for epoch in range(200):
        batches = [plan.batch(step) for step in range(epoch * 7, epoch * 7 + 7)]
        frames = Counter((int(b.episode[0]), t) for b in batches for t in range(b.start[0], b.start[0] + 16))
        assert set(frames.values()) == {1} and all(0 <= t < lengths[e] for e, t in frames)
        starts.append(min(t for e, t in frames if e == 0))
    assert set(starts) == set(range(21))


def test_strides_are_told_in_valid_clips() -> None:
    with pytest.raises(UserError, match="valid clips: 1, 2, 4, 8, 16, 24, 32"):
        Plan(np.array([64]), [(None, 6)], 12, 16, seed=0, stride=2)
    with pytest.raises(UserError, match="no episode of dataset 1 is long enough"):
        Plan(np.array([64, 7]), [(None, 8)], 8, 8, seed=0, part=np.array([0, 1]), weights=(1, 1))


def test_a_million_episodes_take_little_work_and_memory() -> None:
    lengths = np.full(1_000_000, 1000)
    tracemalloc.start()
    began = time.process_time()  # others on this machine do not count
    plan = Plan(lengths, [(1000, 32), (None, 512)], 512 * 64, 32, seed=0)
    for step in (0, 10**6, 10**9):
        assert len(plan.batch(step).episode) == (64 * 16 if step < 1000 else 64)
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1 and peak < 100e6, (seconds, peak)
