"""Planners find what is best in worlds where that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtake import planning
from longtake.datasets.controls import Controls
from longtake.errors import UserError
from longtake.models.config import SamplerConfig
from longtake.sources.formats.memory_maze import CONTROLS as ONE_HOT
from longtake.worlds.solver_face import CostableWorld
from longtake.worlds.world import World
from tests.worlds.played import CONTROLS, exported, seen

CEM, MPPI = planning.CEM, planning.MPPI


class Known:
    """A world whose picture is what was done: the number of the first column so far, and the last of the second."""

    streams = 1

    def __init__(self, controls: Controls, count: int = 1) -> None:
        self.controls, self.sums = controls, np.zeros((count, controls.width))

    def fork(self, n: int) -> Known:
        return Known(self.controls, n)

    def step(self, action: Any) -> np.ndarray:
        self.sums = self.sums + action
        shown = np.clip(20 * self.sums[:, :2], 0, 255).astype(np.uint8)
        return np.pad(shown, ((0, 0), (0, 1)))[:, None, None]


@pytest.mark.parametrize("planner", [CEM(candidates=48, rounds=4), MPPI(candidates=48, rounds=4)])
@pytest.mark.parametrize("controls", [CONTROLS, ONE_HOT])
def test_the_cheapest_future_is_found(planner: Any, controls: Controls) -> None:
    """Six of eight steps ahead; at random a candidate that good is one in nine at most."""
    goal = np.array([0, 120, 0] if controls is ONE_HOT else [120, 0, 0], np.uint8).reshape(1, 1, 3)
    world: Any = Known(controls)
    plan = planner.plan(world, planning.towards(goal))
    assert plan.actions.shape == (8, controls.width) and controls.problem(plan.actions) is None
    ahead = plan.actions[:, 1 if controls is ONE_HOT else 0].sum()
    assert abs(ahead - 6) < 0.8
    assert list(plan.rounds) == sorted(plan.rounds, reverse=True) and plan.cost == plan.rounds[-1]
    again = planner.plan(world, planning.towards(goal))
    assert np.array_equal(again.actions, plan.actions)


def test_a_plan_is_dreamt_in_the_world_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    world = World.load(exported(tmp_path / "m"), sampler=SamplerConfig(steps=1))
    frames, pose = seen(4)
    world.observe(frames, pose=pose)
    untouched = world.copy()
    plan = CEM(horizon=2, candidates=8, rounds=2, elites=2).plan(world, planning.towards(frames[0]))
    assert world.frames == 4 and plan.actions.shape == (2, 2)
    assert np.array_equal(world.step(plan.actions[0]), untouched.step(plan.actions[0]))
    with pytest.raises(UserError, match="a world of 2 streams"):
        CEM().plan(world.fork(2), planning.towards(frames[0]))


def test_a_held_action_is_done_for_several_frames() -> None:
    world: Any = Known(CONTROLS)
    done = planning.dream(world, np.array([[[1, 0], [1, 0]]], np.float32), hold=3)
    assert done[0, :, 0, 0, 0].tolist() == [60, 120]


def test_what_is_no_planner_or_cost_is_told() -> None:
    with pytest.raises(UserError) as told:
        MPPI(horizon=0, rounds=-1)
    assert told.value.lines == ("horizon: 0; at least 1", "rounds: -1; at least 1")
    world: Any = Known(CONTROLS)
    with pytest.raises(UserError, match="expected a finite number for each of 64 candidates"):
        CEM().plan(world, lambda frames, actions: np.zeros(3))


def test_solvers_of_others_are_told_what_their_candidates_cost() -> None:
    """As stable-worldmodel's solvers ask: candidates (B, N, H, A) as a tensor, costs (B, N) as one."""
    worlds: Any = [Known(CONTROLS), Known(CONTROLS)]
    goal = np.array([40, 0, 0], np.uint8).reshape(1, 1, 3)
    model = CostableWorld(worlds, planning.towards(goal))
    candidates = torch.zeros(2, 3, 2, 2)
    candidates[0, 1, :, 0] = 1
    candidates[1, 2, :, 0] = 5  # beyond its bounds: kept within them
    costs = model.get_cost({}, candidates)
    assert costs.shape == (2, 3) and costs.argmin(1).tolist() == [1, 2]
    assert torch.equal(costs, model.criterion({}, candidates))
    with pytest.raises(UserError, match=r"candidates: \(1, 3, 2, 2\), expected \(2, N, H, 2\)"):
        model.get_cost({}, candidates[:1])
