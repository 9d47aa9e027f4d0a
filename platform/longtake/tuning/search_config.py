"""How a sweep searches: what it tries next, and what it stops early. Plain data, importable without Optuna."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.config import Config


class Sampling(Config):
    """What to try next."""

    synonyms = {"method": dict.fromkeys(("bayesian", "bayes", "optuna", "bo"), "tpe") | {"evolution": "nsga2"}}

    method: Literal["tpe", "random", "grid", "nsga2"] = Field(
        "tpe", description="nsga2 is for several objectives; tpe takes them too"
    )
    seed: int = Field(0, ge=0)
    """Of what is drawn [number]"""
    startup: int = Field(8, ge=1, description="tpe: trials drawn at random before the search learns from them [trials]")
    population: int = Field(16, ge=2, description="nsga2: trials of a generation [trials]")


class Pruning(Config):
    """What to stop early, judged at checkpoints."""

    synonyms = {"method": dict.fromkeys(("hyperband", "halving", "successive_halving"), "asha")}

    method: Literal["asha", "median", "none"] = "asha"
    """asha judges at rungs, median at every checkpoint, none never."""
    first: int | None = Field(
        None, ge=1, description="step of the first rung; a quarter of a trial when not given [step]"
    )
    factor: int = Field(2, ge=2, description="asha: rungs lie at first x factor^n; one in `factor` goes on [times]")

    def begin(self, steps: int) -> int:
        """Step of the first rung of trials of `steps`."""
        return self.first or max(1, steps // 4)


def rungs(pruning: Pruning, steps: int) -> list[int]:
    """Steps below `steps` at which ASHA judges a trial; none with another method."""
    reached, rung = [], pruning.begin(steps)
    while pruning.method == "asha" and rung < steps:
        reached.append(rung)
        rung *= pruning.factor
    return reached


def expected_steps(pruning: Pruning, steps: int) -> float:
    """Steps that a trial of `steps` takes on average: at each rung one in `factor` goes on, of median half."""
    if pruning.method == "none":
        return float(steps)
    if pruning.method == "median":
        return (pruning.begin(steps) + steps) / 2
    total, share, at = 0.0, 1.0, 0
    for rung in rungs(pruning, steps):
        total += share * (rung - at)
        share, at = share / pruning.factor, rung
    return total + share * (steps - at)
