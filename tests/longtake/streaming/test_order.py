"""The plan is arithmetic: every frame exactly once an epoch, whatever the workers, restarts and stages."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import UserError
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
