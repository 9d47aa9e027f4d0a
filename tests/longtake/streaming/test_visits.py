"""Orders of revisits: frames that were seen, as many as asked, of the shape that each order has."""

from __future__ import annotations

import numpy as np
import pytest

from longtake.streaming.visits import REVISITS, Order, jumps, loop, revisit, runs, shuffled, walk, way_back


@pytest.mark.parametrize("order", [*REVISITS, way_back, revisit])
@pytest.mark.parametrize(("seen", "asked"), [(16, 16), (16, 5), (7, 30), (2, 2), (1, 3)])
def test_only_what_was_seen_is_asked(order: Order, seen: int, asked: int) -> None:
    for seed in range(50):
        found = order(seen, asked, np.random.default_rng(seed))
        again = order(seen, asked, np.random.default_rng(seed))
        assert found.shape == (asked,) and found.min() >= 0 and found.max() < seen
        np.testing.assert_array_equal(found, again)


def test_the_way_back_is_the_way_reversed() -> None:
    assert way_back(4, 6, np.random.default_rng(0)).tolist() == [3, 2, 1, 0, 0, 1]


@pytest.mark.parametrize("order", [runs, shuffled])
def test_orders_of_all_ask_each_once(order: Order) -> None:
    for seed in range(50):
        assert sorted(order(12, 12, np.random.default_rng(seed)).tolist()) == list(range(12))


def test_shapes_of_the_orders() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert set(np.abs(np.diff(walk(16, 40, rng)))) <= {0, 1}, "a step at a time; twice at either end"
        round_and_round = loop(16, 64, rng)
        length = round_and_round.max() - round_and_round.min() + 1
        np.testing.assert_array_equal(round_and_round[length:], round_and_round[:-length])
    rng = np.random.default_rng(0)
    joined = np.array([(np.abs(np.diff(runs(16, 16, rng))) == 1).sum() for _ in range(200)])
    assert joined.max() == 15 and joined.min() <= 3, "from one run to single frames"
    counts = np.bincount(np.concatenate([jumps(8, 8, rng) for _ in range(500)]), minlength=8)
    assert counts.min() > 400, "any frame is as likely as any other"
