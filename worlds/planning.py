"""Planning in a learned world: many futures are dreamt side by side, and the actions of the best ones are tried on.

`CEM` (Rubinstein, 1999) draws actions from a distribution that it fits to the best of those drawn before; `MPPI`
(Williams et al., 2017) weighs all of them by exp(-cost / temperature). Both draw candidates, dream them by `World.fork`
in one batch and ask a cost of what is seen. The same seed plans the same. A plan is for replanning: act its first
action, observe what came of it, plan again.

Letters: n candidates, T steps of a plan, A numbers of an action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.controls import Controls
from longtake.errors import UserError
from longtake.worlds.world import World

Frames = NDArray[np.uint8]
Actions = NDArray[np.float32]
Costs = NDArray[np.float64]
Cost = Callable[[Frames, Actions], Costs]
"""From pictures (n, T, H, W, 3) and the actions (n, T, A) that led to them to a cost each (n), lower is better."""
LEAST_SPREAD = 0.05
"""Of the actions that are drawn, as a share of their bounds: below it nothing new would be tried."""


@dataclass(frozen=True)
class Plan:
    """The cheapest actions (T, A) that were dreamt, what they cost, and the least cost of each round."""

    actions: Actions
    cost: float
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Planner(ABC):
    """What both have: candidates of `horizon` actions, each `hold` frames long, in rounds."""

    horizon: int = 8
    candidates: int = 64
    rounds: int = 3
    hold: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError, a line per setting that is none."""
        wrong = [name for name in ("horizon", "candidates", "rounds", "hold") if getattr(self, name) < 1]
        if wrong:
            raise UserError(*(f"{name}: {getattr(self, name)}; at least 1" for name in wrong))

    @abstractmethod
    def weights(self, costs: Costs) -> NDArray[np.float64]:
        """How much each candidate (n) counts for what is drawn next; they add up to one."""

    def plan(self, world: World, cost: Cost) -> Plan:
        """The cheapest actions from where a world of one stream is; the world stays as it is.

        Raises:
            UserError: a world of several streams; costs that are not one finite number for each candidate.
        """
        if world.streams != 1:
            raise UserError(f"plan: a world of {world.streams} streams; plan in one of world.streams_apart()")
        rng, draw = np.random.default_rng(self.seed), Draw.wide(world.controls, self.horizon)
        best: tuple[float, Actions] | None = None
        results = []
        for _ in range(self.rounds):
            actions = draw.sample(self.candidates, rng)
            if best is not None:
                actions[0] = best[1]
            costs = self._costs(world, actions, cost)
            cheapest = int(costs.argmin())
            best = (float(costs[cheapest]), actions[cheapest])
            results.append(best[0])
            draw = draw.fitted(actions, self.weights(costs))
        assert best is not None
        return Plan(best[1], best[0], tuple(results))

    def _costs(self, world: World, actions: Actions, cost: Cost) -> Costs:
        costs = np.asarray(cost(dream(world, actions, self.hold), actions), np.float64)
        if costs.shape != (len(actions),) or not np.isfinite(costs).all():
            raise UserError(f"cost: {costs.shape}, expected a finite number for each of {len(actions)} candidates")
        return costs


@dataclass(frozen=True)
class CEM(Planner):
    """Cross-entropy method: fitted to the `elites` cheapest candidates."""

    elites: int = 8

    def weights(self, costs: Costs) -> NDArray[np.float64]:
        """The same for each of the elites."""
        elites = min(self.elites, len(costs))
        weights = np.zeros(len(costs))
        weights[np.argsort(costs, kind="stable")[:elites]] = 1 / elites
        return weights


@dataclass(frozen=True)
class MPPI(Planner):
    """Model predictive path integral: all count, by exp(-cost / temperature); cost is measured by its own spread."""

    temperature: float = 0.3

    def weights(self, costs: Costs) -> NDArray[np.float64]:
        """Softmax."""
        scaled = (costs - costs.min()) / max(float(costs.std()), 1e-12) / self.temperature
        weights = np.exp(-scaled)
        return np.asarray(weights / weights.sum())


def dream(world: World, actions: Actions, hold: int = 1) -> Frames:
    """What is seen after each of the candidates' actions (n, T, A), done for `hold` frames each: (n, T, H, W, 3)."""
    futures, seen = world.fork(len(actions)), []
    for step in range(actions.shape[1]):
        for _ in range(hold):
            frames = futures.step(actions[:, step])
        seen.append(frames)
    return np.stack(seen, 1)


def towards(goal: Frames) -> Cost:
    """The cost of not seeing a picture (H, W, 3): mean squared difference, at the nearest moment and at the last."""
    wanted = goal.astype(np.float64) / 255

    def cost(frames: Frames, actions: Actions) -> Costs:
        apart: Costs = np.square(frames / 255 - wanted).mean((2, 3, 4))
        total: Costs = apart.min(1) + apart[:, -1]
        return total

    return cost


@dataclass(frozen=True)
class Draw:
    """Whence candidates come: of discrete actions the share of each (T, controls), else means and spreads (T, A)."""

    controls: Controls
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @staticmethod
    def wide(controls: Controls, horizon: int) -> Draw:
        """All that can be done, evenly."""
        if controls.discrete:
            count = len(controls.controls)
            return Draw(controls, np.full((horizon, count), 1 / count), np.zeros((horizon, count)))
        low, high = np.array(controls.bounds).T
        return Draw(controls, np.tile((low + high) / 2, (horizon, 1)), np.tile((high - low) / 2, (horizon, 1)))

    def sample(self, count: int, rng: np.random.Generator) -> Actions:
        """Actions (count, T, A)."""
        if self.controls.discrete:
            table = np.array([control.action for control in self.controls.controls], np.float32)
            passed = rng.random((count, len(self.mean), 1)) > self.mean.cumsum(1)[None]
            return np.asarray(table[np.minimum(passed.sum(-1), len(table) - 1)])
        low, high = np.array(self.controls.bounds).T
        drawn = rng.normal(self.mean, self.spread, (count, *self.mean.shape))
        return np.clip(drawn, low, high).astype(np.float32)

    def fitted(self, actions: Actions, weights: NDArray[np.float64]) -> Draw:
        """What the weighted actions look as if drawn from, never so narrow that nothing new is tried."""
        if self.controls.discrete:
            table = np.array([control.action for control in self.controls.controls], np.float32)
            same = (actions[:, :, None] == table).all(-1)
            share = np.tensordot(weights, same.astype(np.float64), 1)
            even = np.full_like(share, 1 / len(table))
            return Draw(self.controls, (1 - LEAST_SPREAD) * share + LEAST_SPREAD * even, self.spread)
        mean = np.tensordot(weights, actions.astype(np.float64), 1)
        spread = np.sqrt(np.tensordot(weights, np.square(actions - mean), 1))
        low, high = np.array(self.controls.bounds).T
        return Draw(self.controls, mean, np.maximum(spread, LEAST_SPREAD * (high - low)))
