"""A trial small enough to watch: its objective is planted, and it can fail, or die and be started again."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.storage.store import Store
from longtake.training.early_stopping import Judge
from longtake.tuning.search_config import Pruning, Sampling
from longtake.tuning.space import Axis
from longtake.tuning.study import Assignment, Study

STEPS = 8
SPACE = {"good": Axis(choice=[True, False]), "extra": Axis(uniform=[0.0, 1.0])}

BRANCHES = {
    "shape": Axis(choice=["flat", "ramp"]),
    "until": Axis(integer=[1, 9], when={"shape": "ramp"}),
    "width": Axis(choice=[8, 16]),
    "nested": Axis(choice={"none": [], "half": [8, 16]}, when={"width": [16]}),
}


@dataclass(frozen=True)
class Toy:
    """How long a step takes, which trial fails, and which one dies at step 4 (once: the file says so)."""

    pause_s: float = 0.0
    fails: int = -1
    dies: int = -1
    flag: str = ""


def objective(given: Assignment, step: int) -> float:
    """Grows with the steps; the planted half is far better."""
    return (10.0 * bool(given.labels["good"]) + float(given.labels.get("extra") or 0)) * step / STEPS


def trial(toy: Toy, given: Assignment, judge: Judge) -> None:
    """Runs in a Tune actor."""
    if given.number == toy.fails:
        raise ValueError("planted failure")
    for step in range(2, STEPS + 1, 2):
        time.sleep(toy.pause_s)
        if step == 4 and given.number == toy.dies and not Path(toy.flag).exists():
            Path(toy.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if not judge(step, {"objective": objective(given, step), "frames": 10.0 * step}):
            return


def study_of(store: Store | None, sweep: str = "s", seed: int = 0, **more: Any) -> Study:
    """The study that every test here uses, with some of it otherwise."""
    asked: dict[str, Any] = {
        "space": SPACE,
        "steps": STEPS,
        "direction": "maximize",
        "sampling": Sampling(seed=seed, startup=3),
        "pruning": Pruning(first=2, factor=2),
    }
    return Study(store, sweep, **asked | more)
