"""`longtake bench sweep`: what is replayed is what was recorded, and what is paid is what was trained."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from longtake.config import build
from longtake.errors import UserError
from longtake.jobs.bench import sweep as bench
from longtake.jobs.bench.sweep import Curves, Settings
from longtake.tuning.search_config import Pruning, Sampling
from tests.longtake.tuning.played import play
from tests.longtake.tuning.toy_sweep import study_of


def curves(**more: Any) -> Curves:
    """A grid of 20 points whose losses never cross; x and y tell which are good."""
    points = [{"x": x, "y": y} for x in range(5) for y in range(4)]
    told = {
        "name": "toy",
        "space": {"x": {"integer": [0, 4]}, "y": {"choice": [0, 1, 2, 3]}},
        "steps": 8,
        "frames_per_step": 10,
        "direction": "minimize",
        "trials": [{"labels": p, "values": {s: p["x"] + p["y"] / 4 + 8 / s for s in (2, 4, 6, 8)}} for p in points],
    }
    return build(Curves, told | more)


def test_random_search_pays_for_whole_trials() -> None:
    found = bench.search(curves(), Sampling(method="random"), Pruning(method="none"))
    reached = list(itertools.islice(found, 5))
    assert [each.frames for each in reached] == [80, 160, 240, 320, 400]
    bests = [each.best for each in reached]
    assert bests == sorted(bests, reverse=True) and bests[-1] >= 1


def test_pruned_trials_cost_what_they_trained() -> None:
    found = bench.search(curves(), Sampling(method="random"), Pruning(first=2, factor=2))
    reached = list(itertools.islice(found, 30))
    costs = {after.frames - before.frames for before, after in itertools.pairwise(reached)}
    assert costs == {20, 40, 80}
    assert reached[-1].frames < 30 * 80


def test_a_search_with_asha_needs_fewer_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where curves never cross, stopping early saves; the yardstick needs about what random needs."""
    monkeypatch.setattr(bench, "read", lambda settings: [curves()])
    rows = bench.run(Settings(seeds=8, trials=10, startup=3, first=2))
    median = {row.case: row.value for row in rows if row.metric == "share of random's frames"}
    assert median["toy: ASHA + random"] < median["toy: random, another seed"]
    assert set(median) == {"toy: ASHA + TPE", "toy: ASHA + random", "toy: random, another seed"}


def test_only_whole_grids_are_replayed() -> None:
    whole = curves()
    with pytest.raises(UserError, match="1 points were not trained to step 8"):
        curves(trials=[curve.model_dump(mode="json") for curve in whole.trials[1:]])
    with pytest.raises(UserError, match="only grids can be replayed"):
        curves(space={"x": {"uniform": [0, 1]}})
    with pytest.raises(UserError, match="save: keeps the curves of a sweep"):
        bench.read(Settings(save="x.json"))


def test_the_shipped_curves_are_whole() -> None:
    sets = bench.read(Settings())
    assert [curves.name for curves in sets] == ["maze", "memory", "pacman"]
    for curves, seen in zip(sets, (8, 8, 4), strict=True):
        assert len(curves.trials) >= 100
        assert {len(curve.values) for curve in curves.trials} == {seen}


def test_what_a_study_was_told_is_what_is_replayed() -> None:
    study = study_of(None)
    play(study, 3)
    assert [max(curve) for curve in study.curves()] == [row["step"] for row in study.rows()]
