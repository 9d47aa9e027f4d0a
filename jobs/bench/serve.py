"""Sessions of a service: how much faster they go in one batch than one after another.

The model is the demo's in size, with random weights: what it makes is noise, what it costs is the same. All sessions
ask for a step at the same time and each order is kept in a store, as in `longtake serve` without Ray and HTTP: `batch`
is how many times more frames a second they get with one forward pass for all than with one for each. `exact` is the
smallest batch from which on a session's bits do not follow from who shares it. CPU seconds of one thread. Two minutes.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from longtake.config import Config
from longtake.jobs.bench.timing import Row, in_turns, one_thread, speedup
from longtake.jobs.bench.world import Settings as WorldSettings
from longtake.jobs.bench.world import fresh
from longtake.jobs.serve.orders import Step
from longtake.jobs.serve.sessions import Limits, Sessions
from longtake.models.config import SamplerConfig
from longtake.storage.store import open_store
from longtake.worlds.batch import exact_batch

Positive = Annotated[int, Field(ge=1)]


class Settings(Config):
    """Which model, and how many sessions."""

    training: str = Field("demo-block-ssm", description="a config, whose model it is")
    sessions: Positive = Field(32, description="at the same time")
    rounds: Positive = Field(5, description="of steps of all, in turns")
    sampler: SamplerConfig = SamplerConfig(steps=2, context_noise=0.1)


def run(settings: Settings) -> list[Row]:
    """Measure."""
    world = fresh(WorldSettings(training=settings.training, sampler=settings.sampler, context=1), 1, states=2)
    loop = asyncio.new_event_loop()
    case, n = f"{settings.sessions} sessions", settings.sessions
    try:
        with one_thread(), tempfile.TemporaryDirectory() as folder:
            least = exact_batch(world, n)
            store = open_store(folder)
            services = {
                "together": Sessions(store, world, Limits(largest=n, wait_s=1.0), least),
                "apart": Sessions(store, world, Limits(largest=1), 1),
            }
            rounds = {name: _round(loop, service, n) for name, service in services.items()}
            seconds = in_turns(rounds, settings.rounds)
            for service in services.values():
                loop.run_until_complete(service.close())
    finally:
        loop.close()
    return [
        Row(case, "batch", speedup(seconds["together"], seconds["apart"]), "times", settings.rounds),
        Row(case, "frames", n / statistics.median(seconds["together"]), "frames/s", settings.rounds),
        Row(case, "exact", least, "streams", 1),
    ]


def _round(loop: asyncio.AbstractEventLoop, service: Sessions, count: int) -> Callable[[], object]:
    """A step of every one of so many sessions, all asked at the same time."""
    names = [str(loop.run_until_complete(service.begin(seed))["session"]) for seed in range(count)]
    steps = iter(range(10**6))

    async def step(n: int) -> None:
        await asyncio.gather(*(service.act(name, Step(n=n, action="forward")) for name in names))

    return lambda: loop.run_until_complete(step(next(steps)))
