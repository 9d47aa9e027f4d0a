"""`longtake bench rollout`: fair pairs, a sound bound, memories of real frames, and rows that answer."""

from __future__ import annotations

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.jobs.bench.command import choose, read_settings
from longtake.jobs.bench.rollout import Settings, alternate, run, shown_memories, upper_bound
from longtake.jobs.presets import in_family, size
from longtake.models.world_model import WorldModel


def test_pairs_swap_their_order_and_the_first_does_not_count() -> None:
    called: list[str] = []
    times = alternate([lambda: called.append("early"), lambda: called.append("late")], 3)
    assert called == ["late", "early", "early", "late", "late", "early", "early", "late"]
    assert len(times) == 3 and all(len(pair) == 2 for pair in times)


def test_the_bound_lies_above_the_median_in_95_of_100_cases() -> None:
    draw = np.random.default_rng(1)
    above = [upper_bound(list(np.exp(draw.normal(0, 0.1, 60)))) > 1 for _ in range(100)]
    assert 88 <= sum(above) <= 100 and sum(above) < 100
    assert upper_bound([1.5] * 9) == 1.5


def test_memories_are_those_after_so_many_frames() -> None:
    model = WorldModel(in_family(size("tiny"), "causal_full")).eval()
    early, late = shown_memories(model, (5, 9))
    assert (early.frames, late.frames) == (5, 9)
    assert [layer.cache[0].shape[1] for layer in (early.layers[0], late.layers[0])] == [5, 9]
    assert (late.layers[0].cache[0][:, :5] == early.layers[0].cache[0]).all()


@pytest.mark.slow
def test_constant_beside_growing() -> None:
    rows = run(Settings(size="tiny", early=10, late=60, pairs=5, contrast_pairs=2))
    value = {(row.case, row.metric): row.value for row in rows}
    assert value["tiny block_ssm, frame 60 over 10", "memory growth"] == 0
    assert value["tiny causal_full, frame 60 over 10", "memory growth"] == 50 * 20_480
    assert value["tiny block_ssm, frame 60 over 10", "ratio"] < 1.5
    assert value["tiny causal_full passes block_ssm", "bytes"] == 12
    assert value["tiny causal_full passes block_ssm", "operations"] == 3


def test_frames_out_of_order_are_refused() -> None:
    with pytest.raises(UserError, match="early: 300 frames are not fewer than late: 200"):
        read_settings(choose(["rollout"]), ["rollout.early=300", "rollout.late=200"])
