"""Cold start: seconds from `longtake train tiny` to the end of its first optimizer step, in fresh processes.

Through Ray (a local Ray is started, and a worker on it) and in the local context (`workers=0`), in turns; the first
step's row in the table `steps` tells when it ended. Random walks stand for the dataset. `first step` is the median over
rounds, the bars 30 s and 10 s on two idle cores; `data wait` the share of the whole that the first step of the run
spent waiting for its clips. Four minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from longtake.config import Config
from longtake.jobs.bench.timing import Row
from longtake.jobs.bench.train import written
from longtake.storage.store import Store, open_store

CONTEXTS = {"through Ray": 1, "local context": 0}
"""What is started, and on how many workers."""


class Settings(Config):
    """How often."""

    rounds: Annotated[int, Field(ge=1)] = 5


@dataclass(frozen=True)
class Start:
    """Seconds from the command to the end of the first step, and of them those spent waiting for clips."""

    first_step: float
    data_wait: float


def run(settings: Settings) -> list[Row]:
    """Start everything `rounds` times."""
    per_name: dict[str, list[Start]] = {name: [] for name in CONTEXTS}
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        store = open_store(folder)
        written(store, "doom-maze-tiny", edge=32, frames=96)
        for _ in range(settings.rounds):
            for name, workers in CONTEXTS.items():
                per_name[name].append(started(store, workers))
    rows = []
    for name, starts in per_name.items():
        case = f"tiny, {name}"
        rows += [
            Row(case, "first step", statistics.median(one.first_step for one in starts), "s", settings.rounds),
            Row(case, "first step, worst", max(one.first_step for one in starts), "s", settings.rounds),
            Row(case, "data wait", statistics.median(one.data_wait for one in starts), "s", settings.rounds),
        ]
    return rows


def started(store: Store, workers: int) -> Start:
    """One start, in a process of its own."""
    settings = {"steps": 2, "checkpoint_every": 1, "validation.every": 2, "workers": workers}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "longtake.jobs", "train", "tiny", *words, "--store", store.uri],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=300,
    )
    steps = store.table("steps")
    first = steps[steps.step == 0].sort_values("event_time").iloc[-1]
    return Start(first.event_time.timestamp() - began, float(first.data_wait * first.step_s))
