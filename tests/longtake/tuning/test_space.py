"""The space of a sweep: its corners, its axes, its branches, and what a search of it costs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from pydantic import ValidationError

from longtake.tuning import search_config, space, sweep_demand
from longtake.tuning.search_config import Pruning
from longtake.tuning.space import Axis
from tests.longtake.tuning.toy_sweep import BRANCHES


def test_corners_are_all_combinations_or_hold_every_pair() -> None:
    axes = {"a": Axis(choice={"x": [1], "y": [2]}), "b": Axis(integer=[2, 8]), "c": Axis(choice=[1, 2, 3])}
    every = list(space.corners(axes))
    assert len(every) == 2 * 2 * 3 + 5  # and each whole number between the ends
    assert {point["b"] for point in every} == set(range(2, 9))
    few = list(space.corners(axes, most=8))
    assert len(few) <= 9 + 5
    for one, other in itertools.combinations(axes, 2):
        pairs = {(point[one], point[other]) for point in few}
        assert pairs >= set(itertools.product(axes[one].extremes, axes[other].extremes))
    assert space.size(axes) == 2 * 7 * 3
    assert space.settings(axes, {"a": "y", "b": 3, "c": 2}) == {"a": [2], "b": 3, "c": 2}


@pytest.mark.parametrize(
    ("axis", "reason"),
    [
        ({}, "exactly one"),
        ({"choice": [1], "uniform": [0, 1]}, "exactly one"),
        ({"choice": []}, "no values"),
        ({"choice": [[1], [1]]}, "given twice"),
        ({"uniform": [1, 0]}, "below the second"),
        ({"loguniform": [0, 1]}, "above 0"),
    ],
)
def test_an_axis_without_a_meaning_is_refused(axis: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Axis.model_validate_json(json.dumps(axis))


def test_a_demand_shows_its_arithmetic() -> None:
    (line,) = sweep_demand.SweepDemand(2, at_once=2).problems(cpus=2, gpus=0)
    assert "2 trials at once x 2 workers x (0.5 CPU for the rank + 0.5 for its data tasks) = 4 CPUs" in line
    assert line.endswith("this machine has 2: lower at_once to 1")
    (line,) = sweep_demand.SweepDemand(4, at_once=1).problems(cpus=2, gpus=0)
    assert "not even one trial fits" in line
    assert not sweep_demand.SweepDemand(1, at_once=2).problems(cpus=2, gpus=0)


def test_a_branch_counts_only_where_its_condition_holds() -> None:
    every = list(space.points(BRANCHES))
    assert len(every) == space.size(BRANCHES) == (1 + 9) * (1 + 2)
    assert len({json.dumps(point) for point in every}) == len(every)
    assert all(("until" in point) == (point["shape"] == "ramp") for point in every)
    few = list(space.corners(BRANCHES, most=8))
    for field, axis in BRANCHES.items():
        assert {point[field] for point in few if field in point} == set(axis.values)
    assert all(("nested" in point) == (point["width"] == 16) for point in few)
    assert space.size({**BRANCHES, "lr": Axis(uniform=[0, 1], when={"shape": "ramp"})}) is None


def test_conditions_that_cannot_be_met_are_told() -> None:
    odd = {
        "early": Axis(choice=[1], when={"shape": "flat"}),
        "shape.0.until": Axis(choice=[1]),
        "lr": Axis(uniform=[0, 1]),
        "shape": Axis(choice=["flat", "ramp"]),
        "by_range": Axis(choice=[1], when={"lr": 0.5}),
        "misspelt": Axis(choice=[1], when={"shape": "rampe"}),
    }
    assert not space.problems(BRANCHES)
    told = space.problems(odd)
    assert [line.split(":")[0] for line in told] == ["early.when", "shape", "by_range.when", "misspelt.when"]
    assert "list it first" in told[1] and "lr is a range" in told[2] and "did you mean ramp?" in told[3]


def test_asha_costs_what_its_rungs_say() -> None:
    assert search_config.expected_steps(Pruning(method="none"), 400) == 400
    # All reach 100, half of them 200, a quarter the end.
    assert search_config.expected_steps(Pruning(first=100, factor=2), 400) == 100 + 50 + 50
    assert search_config.rungs(Pruning(), 400) == [100, 200] == search_config.rungs(Pruning(first=100), 400)
    assert search_config.rungs(Pruning(), 2) == [1]
