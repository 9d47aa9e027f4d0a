"""Seconds from Enter to the first step of `train tiny`: submitted to a Ray head, and run without one, in turns.

The head is one of this machine, with a token; the data are random and lie in a folder. `first step` is when the run
first tells of a step (every half second at most). Each round submits and then runs here, two steps and to its end;
`overhead` is the median over rounds of the difference, the bar 15 s. The head has not seen this code before the first
round, which stands apart (`code is new`): it is sent and installed there. Wall-clock seconds; about three minutes.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from longtake.config import Config
from longtake.errors import UserError
from longtake.jobs.bench import stream
from longtake.jobs.bench.own_head import own_head
from longtake.jobs.bench.timing import Row
from longtake.storage.store import Store, open_store

POLL_S = 0.02
LIMIT_S = 240.0
"""How long a training may take, from Enter to its end."""
HERE, SUBMITTED = "here", "submitted"


class Settings(Config):
    """How often."""

    rounds: Annotated[int, Field(ge=1)] = Field(2, description="after the one in which the code is new")


def run(settings: Settings) -> list[Row]:
    """Measure on a head of this machine, which ends with it."""
    # Short, as sockets lie deep under it.
    with tempfile.TemporaryDirectory(prefix="ltb", dir="/tmp") as name:
        folder = Path(name)
        data = stream.Settings(episodes=20, frames=96, edge=32)
        store = open_store(folder / "store")
        stream.written(store, data)
        environment = _environment(folder)
        with own_head(environment, folder / "head.log") as ports:
            submitting = environment | {"RAY_API_SERVER_ADDRESS": ports.address}
            training = ["train", "tiny", "--set", "data.dataset=stream", "--set", "steps=2", "--store", store.uri]
            lines = {SUBMITTED: (["submit", *training], submitting), HERE: (training, environment)}
            seconds: dict[str, list[float]] = {name: [] for name in lines}
            for _ in range(settings.rounds + 1):
                for name, (line, variables) in lines.items():
                    seconds[name].append(first_step([sys.executable, "-m", "longtake.jobs", *line], variables, store))
        return list(_rows(seconds))


def _environment(folder: Path) -> dict[str, str]:
    """A home of its own and a token; nothing is downloaded."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder / "r"),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PIP_NO_INDEX": "1",
    }


def first_step(command: Sequence[str], environment: Mapping[str, str], store: Store) -> float:
    """Seconds until a run of the store that was not there before tells of a step; returns after the command's end.

    Raises UserError with what it printed if it fails or takes too long.
    """
    before, began, first = set(_told(store)), time.monotonic(), None
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=dict(environment), stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() - began < LIMIT_S:
                if first is None and set(_told(store)) - before:
                    first = time.monotonic() - began
                time.sleep(POLL_S)
        finally:
            process.kill()
        if process.wait() or first is None:
            out.seek(0)
            raise UserError(f"{' '.join(command)}: exit code {process.returncode}: {out.read()[-3000:]}")
    return first


def _told(store: Store) -> Iterator[str]:
    """Runs that have told of a step."""
    for place in Path(store.path("runs")).glob("*/progress.json"):
        if json.loads(place.read_text() or "{}").get("step"):
            yield place.parent.name


def _rows(seconds: Mapping[str, Sequence[float]]) -> Iterator[Row]:
    over = [remote - here for remote, here in zip(seconds[SUBMITTED], seconds[HERE], strict=True)]
    rounds = len(over) - 1
    for name, times in seconds.items():
        yield Row(name, "first step", statistics.median(times[1:]), "s", rounds)
    yield Row(f"{SUBMITTED} over {HERE}", "overhead", statistics.median(over[1:]), "s", rounds)
    yield Row(f"{SUBMITTED} over {HERE}, code is new", "overhead", over[0], "s", 1)
