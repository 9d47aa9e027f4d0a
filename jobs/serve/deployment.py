"""The service on Ray Serve: replicas that hold sessions, and a board on which they write how they do.

A session's requests go to one replica by the header `x-session-id` (consistent hashing): that one has it in memory. Any
other reads it from the store, so a replica may come, go or be killed at any time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from longtake.jobs.serve.metrics import Sample, summary
from longtake.jobs.serve.sessions import Limits
from longtake.models.config import SamplerConfig

REPORT_S = 1.0
STATES = 4
"""Moments whose whole state a session keeps in memory to go back to."""


@dataclass(frozen=True)
class Settings:
    """What is served, and on what."""

    run: str
    store: str
    sampler: SamplerConfig
    limits: Limits
    token_digest: str
    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


class Board:
    """What each replica has told lately."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[float, Sample]] = {}

    def report(self, replica: str, sample: Sample) -> None:
        """A replica tells how it does."""
        self._samples[replica] = (time.monotonic(), sample)

    def samples(self) -> dict[str, Sample]:
        """Of the replicas that live."""
        now = time.monotonic()
        return {name: sample for name, (at, sample) in self._samples.items() if now - at < 5 * REPORT_S}


class Replica:
    """One process that holds the model and some of the sessions."""

    def __init__(self, settings: Settings, board: Any) -> None:
        import torch
        from ray import serve

        from longtake.jobs.serve.sessions import Sessions
        from longtake.storage.store import open_store
        from longtake.worlds.batch import exact_batch

        torch.set_num_threads(max(1, int(settings.cpus)))
        self.settings, self.board = settings, board
        self.name = serve.get_replica_context().replica_id.unique_id
        fresh = load(settings)
        least = exact_batch(fresh, settings.limits.largest)
        self.sessions = Sessions(open_store(settings.store), fresh, settings.limits, least)
        self._reporting: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Any:
        """What answers the requests: Serve asks for it once the replica is made."""
        from longtake.jobs.serve.app import application

        self._reporting = asyncio.get_running_loop().create_task(self._report())
        return application(self.sessions, self.settings.token_digest, self._metrics)

    async def _report(self) -> None:
        while True:
            self.board.report.remote(self.name, self.sessions.sample())
            await asyncio.sleep(REPORT_S)

    async def _metrics(self) -> dict[str, Any]:
        samples = await self.board.samples.remote() | {self.name: self.sessions.sample()}
        return summary(samples, await asyncio.to_thread(self.sessions.journal.count))


def load(settings: Settings) -> Any:
    """The fresh world of a service. Raises UserError for a run that is not there."""
    from longtake.worlds.world import World

    device = "cuda" if settings.gpus else "cpu"
    return World.load(settings.run, store=settings.store, sampler=settings.sampler, device=device, states=STATES)


def deploy(settings: Settings, host: str, port: int) -> None:
    """Start Serve in the open Ray, and the service in it; returns when it answers."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=host, port=port))
    board = serve.deployment(name="board", ray_actor_options={"num_cpus": 0})(Board).bind()
    batch = settings.limits.largest
    replica = serve.deployment(
        name="world",
        max_ongoing_requests=4 * batch,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": batch,
        },
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # The class takes it; the types that Ray gives its arguments say otherwise.
        request_router_config=RequestRouterConfig(request_router_class=ConsistentHashRouter),  # type: ignore[arg-type]
        health_check_period_s=1,
    )(serve.ingress()(Replica))
    serve.run(replica.bind(settings, board), name="longtake", route_prefix="/")
