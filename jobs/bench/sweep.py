"""How much training a search saves: TPE with ASHA beside random search, on learning curves that were recorded once.

Each seed: random search trains `trials` models to their end. Then others look for a done trial as good as random's
best. They pay for every frame up to where ASHA stops a trial: ASHA with TPE, ASHA with random, and random from another
seed as the yardstick. No search tries a point twice. `share of random's frames` is the median over seeds of what they
paid; infinite where they had not got there after `patience` times random's cost, or had tried every point. The bar is
0.5 for ASHA with TPE, upper end of the 95 % bootstrap interval. `best at equal cost` is the median of the best
objective.

Three sets of curves are shipped: held-out losses of tiny models, every point of a grid, each trained to its end at a
constant learning rate. With one that falls from the start, a model that learns fast looks bad until late, and ASHA
stopped the best ones. `curves-pacman` (168 points) judges the search: protocol and settings were committed before any
of its curves was read, but for three points that had been timed, and it was replayed once: 0.38 of random's frames
(0.25 to 0.45), the bar is met; ASHA with random 0.38 (0.27 to 0.53), so most of it is ASHA's work.

The search was developed on the other two, and has no settings here but the defaults of any sweep. `curves-maze` (108
points): 0.27 (0.21 to 0.34). `curves-memory` (112 points): 0.77 (0.54 to 1.29), so the bar is not met there, nor does
random with ASHA meet it (0.73). The order at step 12 tells little of the order at the end there (rank correlation 0.65,
0.77 for the mazes), one search in three stops every point that is good enough, and random is good at what is left: 32
of 112 points. What a search saves depends on its curves.

`--set sweep.store=URI --set sweep.recorded=ID` takes any finished grid without pruning, and `--set sweep.save=FILE`
keeps its curves in the form of the shipped ones. About three minutes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from longtake.config import Config, load
from longtake.errors import UserError
from longtake.jobs.bench.timing import Row
from longtake.storage.store import open_store
from longtake.tuning.search_config import Pruning, Sampling
from longtake.tuning.space import Axis, Label
from longtake.tuning.study import Direction, Study

Positive = Annotated[int, Field(ge=1)]
SHIPPED = [str(Path(__file__).parent / f"sweep_curves_{name}.json") for name in ("maze", "memory", "pacman")]
RESAMPLES = 4000
METHODS: dict[str, tuple[Literal["tpe", "random"], Literal["asha", "none"]]] = {
    "ASHA + TPE": ("tpe", "asha"),
    "ASHA + random": ("random", "asha"),
    "random, another seed": ("random", "none"),
}


class Settings(Config):
    """Which curves, how many seeds, how the search is set."""

    curves: Annotated[list[str], Field(min_length=1)] = Field(SHIPPED, description="files of recorded curves")
    store: str | None = Field(None, description="take the curves of a sweep in this store instead")
    recorded: str = Field("latest", description="that sweep's id")
    save: str | None = Field(None, description="a file to keep that sweep's curves in")
    seeds: Positive = 50
    trials: Positive = Field(32, description="of random search")
    startup: Positive = Field(8, description="trials of TPE drawn at random")
    first: Positive | None = Field(None, description="step of ASHA's first rung; a quarter of a trial when not given")
    factor: Annotated[int, Field(ge=2)] = 2
    patience: Annotated[float, Field(gt=0)] = Field(2.0, description="times random's cost, after which a seed is over")


class Curve(Config):
    """What was seen of one point: the objective by step."""

    labels: dict[str, Label]
    values: Annotated[dict[int, float], Field(min_length=1)]


class Curves(Config):
    """Every point of a space, trained to its end."""

    name: str
    space: dict[str, Axis]
    steps: Positive
    frames_per_step: Positive
    direction: Direction
    trials: list[Curve]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        from longtake.tuning.space import points, size

        if size(self.space) is None:
            raise ValueError("space: a range has no end of points; only grids can be replayed")
        trained = {_key(curve.labels) for curve in self.trials if max(curve.values) == self.steps}
        missing = [point for point in points(self.space) if _key(point) not in trained]
        if missing:
            raise ValueError(f"trials: {len(missing)} points were not trained to step {self.steps}: {missing[0]}, ...")
        return self

    def by_point(self) -> dict[str, dict[int, float]]:
        """A point as text → its objective by step."""
        return {_key(curve.labels): curve.values for curve in self.trials}


def _key(labels: dict[str, Label]) -> str:
    return json.dumps(labels, sort_keys=True)


def of_sweep(uri: str, wanted: str) -> Curves:
    """The curves of a finished sweep in a store. Raises UserError for one that is no whole grid, or that still runs."""
    from longtake.config import build
    from longtake.jobs.sweep import command as job
    from longtake.storage import lease
    from longtake.tables.find import SWEEPS, find_run

    store = open_store(uri)
    name = str(find_run(store, wanted, SWEEPS)["run"])
    sweep = job.earlier(store, name, [])
    with lease.of_sweep(store, name) as held:
        study = job.open_study(sweep, store, held)
    settings: dict[str, Any] = {
        "name": sweep.config.name,
        "space": {field: axis.model_dump(mode="json") for field, axis in sweep.config.space.items()},
        "steps": sweep.base.steps,
        "frames_per_step": sweep.base.data.frames_per_step,
        "direction": sweep.config.objective.direction,
    }
    rows = zip(study.rows(), study.curves(), strict=True)
    axes = sweep.config.space
    trials = [
        {"labels": {f: row[f] for f in axes if row[f] is not None}, "values": curve} for row, curve in rows if curve
    ]
    return build(Curves, settings | {"trials": trials})


def read(settings: Settings) -> list[Curves]:
    """The curves that the settings name, kept if they ask for it."""
    if settings.store is None:
        if settings.save:
            raise UserError("save: keeps the curves of a sweep: give store too")
        return [load(Curves, Path(file)) for file in settings.curves]
    curves = of_sweep(settings.store, settings.recorded)
    if settings.save:
        Path(settings.save).write_text(curves.model_dump_json(indent=1))
    return [curves]


@dataclass(frozen=True)
class Reached:
    """How far a search has come: frames paid, and the best done trial so far (worst possible before the first)."""

    frames: int
    best: float


def search(curves: Curves, sampling: Sampling, pruning: Pruning) -> Iterator[Reached]:
    """A search on recorded curves, trial by trial, through all points: the study of a sweep, one trial at a time."""
    known, sign = curves.by_point(), 1 if curves.direction == "maximize" else -1
    study = Study(
        None,
        "replay",
        curves.space,
        steps=curves.steps,
        direction=curves.direction,
        sampling=sampling,
        pruning=pruning,
    )
    paid, best = 0, -math.inf
    for _ in known:
        given = study.ask()
        last = 0
        for step, value in sorted(known[_key(given.labels)].items()):
            paid, last = paid + (step - last) * curves.frames_per_step, step
            if not study.report(given.number, step, value, frames=last * curves.frames_per_step, seconds=0.0):
                break
            if step == curves.steps:
                best = max(best, sign * value)
        study.finish(given.number)
        yield Reached(paid, sign * best)


def run(settings: Settings) -> list[Row]:
    """Replay every seed on each set of curves."""
    return [row for curves in read(settings) for row in _replay(settings, curves)]


def _replay(settings: Settings, curves: Curves) -> list[Row]:
    sign = 1 if curves.direction == "maximize" else -1
    cost = settings.trials * curves.steps * curves.frames_per_step
    shares: dict[str, list[float]] = {name: [] for name in METHODS}
    equal: dict[str, list[float]] = {name: [] for name in ("random", *METHODS)}
    for seed in range(settings.seeds):
        target = _after(search(curves, *_method(settings, "random", "none", seed)), cost)
        equal["random"].append(target)
        for number, (name, (sampler, pruner)) in enumerate(METHODS.items(), 1):
            method = _method(settings, sampler, pruner, seed + 10_000 * number)
            paid, best = _chase(search(curves, *method), sign * target, sign, cost, settings.patience)
            shares[name].append(paid / cost)
            equal[name].append(best)
    rows = [*_share_rows(shares), *_equal_rows(equal)]
    return [replace(row, case=f"{curves.name}: {row.case}") for row in rows]


def _method(
    settings: Settings, sampler: Literal["tpe", "random"], pruner: Literal["asha", "none"], seed: int
) -> tuple[Sampling, Pruning]:
    return (
        Sampling(method=sampler, seed=seed, startup=settings.startup),
        Pruning(method=pruner, first=settings.first, factor=settings.factor),
    )


def _after(progress: Iterator[Reached], cost: int) -> float:
    """The best that a search has when it has paid so much."""
    best = math.nan
    for reached in progress:
        if reached.frames > cost:
            return best
        best = reached.best
    return best  # all points cost less


def _chase(progress: Iterator[Reached], target: float, sign: int, cost: int, patience: float) -> tuple[float, float]:
    """Frames paid until a done trial was as good as the target, and the best at `cost`."""
    paid, best = math.inf, math.nan
    for reached in progress:
        if reached.frames <= cost:
            best = reached.best
        if sign * reached.best >= target and paid == math.inf:
            paid = reached.frames
        if reached.frames > patience * cost or (paid < math.inf and reached.frames > cost):
            break
    return (paid if paid <= patience * cost else math.inf), best


def _share_rows(shares: dict[str, list[float]]) -> Iterator[Row]:
    for name, values in shares.items():
        draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
        medians = np.quantile(draws, 0.5, axis=1, method="higher")  # no mean of two where one is infinite
        low, high = np.quantile(medians, [0.025, 0.975], method="higher")
        middle = float(np.quantile(values, 0.5, method="higher"))
        yield Row(name, "share of random's frames", middle, "times", len(values))
        yield Row(name, "share, lower bound", float(low), "times", len(values))
        yield Row(name, "share, upper bound", float(high), "times", len(values))
        yield Row(name, "never got there", sum(map(math.isinf, values)) / len(values), "share", len(values))


def _equal_rows(equal: dict[str, list[float]]) -> Iterator[Row]:
    for name, values in equal.items():
        yield Row(name, "best at equal cost", float(np.median(values)), "objective", len(values))
