"""Cold start: seconds from `longtake train tiny` to the end of its first optimizer step, in fresh processes.

Through Ray (a local Ray is started, and a worker on it), through the one that `longtake up` keeps warm, and in the
local context (`workers=0`), in turns; the first step's row in the table `steps` tells when it ended. Random walks stand
for the dataset. `first step` is the median over rounds, the bars 30 s, 12 s and 10 s on two idle cores; `data wait` the
share of the whole that the first step of the run spent waiting for its clips. Six minutes.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from longtake.config import Config
from longtake.jobs.bench.timing import Row
from longtake.jobs.bench.train import written
from longtake.storage.store import Store, open_store

CONTEXTS = {"through Ray": (1, "local"), "through a warm Ray": (1, ""), "local context": (0, "local")}
"""What is started: on how many workers, and RAY_ADDRESS."""
SETTLE_S = 10.0
"""After each start, so that new workers wait for the next one, and nothing is measured beside their own start."""


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
        with _warm_ray() as environment:
            for _ in range(settings.rounds):
                for name, (workers, address) in CONTEXTS.items():
                    per_name[name].append(started(store, workers, environment | {"RAY_ADDRESS": address}))
                    time.sleep(SETTLE_S)
    rows = []
    for name, starts in per_name.items():
        case = f"tiny, {name}"
        rows += [
            Row(case, "first step", statistics.median(one.first_step for one in starts), "s", settings.rounds),
            Row(case, "first step, worst", max(one.first_step for one in starts), "s", settings.rounds),
            Row(case, "data wait", statistics.median(one.data_wait for one in starts), "s", settings.rounds),
        ]
    return rows


@contextlib.contextmanager
def _warm_ray() -> Iterator[dict[str, str]]:
    """A Ray that `longtake up` keeps while the block runs, and the environment in which verbs find it."""
    with tempfile.TemporaryDirectory(prefix="lt", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_ADDRESS": ""}
        _longtake(environment, "up")
        try:
            yield environment
        finally:
            _longtake(environment, "down")


def _longtake(environment: Mapping[str, str], *words: str) -> None:
    command = [sys.executable, "-m", "longtake.jobs", *words]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=300)


def started(store: Store, workers: int, environment: Mapping[str, str]) -> Start:
    """One start, in a process of its own."""
    settings = {"steps": 2, "checkpoint_every": 1, "validation.every": 2, "workers": workers}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    began = time.time()
    _longtake(environment, "train", "tiny", *words, "--store", store.uri)
    steps = store.table("steps")
    first = steps[steps.step == 0].sort_values("event_time").iloc[-1]
    return Start(first.event_time.timestamp() - began, float(first.data_wait * first.step_s))
