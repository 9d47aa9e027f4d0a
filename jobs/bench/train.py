"""A step of `longtake train` through Ray Train, Ray Data and DeepSpeed, over one of a bare PyTorch loop, in turns.

One worker trains a shipped size on random walks with the real train loop: clips from Ray Data, DeepSpeed's engine, log
and progress. After each of its steps a process of its own, without Ray and DeepSpeed, makes one with the same model,
loss and clips, which it has in its memory: backward, clipping and AdamW of PyTorch. A thread each, wall-clock seconds;
`ratio` is the median over the pairs, the bar 1.05; `CPU ratio` the same of CPU seconds, all threads of either process,
which says something on a busy machine too. The first pairs, in which things start up, and the last, which
validates, do not count. Three minutes for `small` on a CPU.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from longtake.config import Config
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.jobs.bench.timing import Row
from longtake.jobs.presets import size
from longtake.jobs.train.command import check
from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loop import train_loop
from longtake.jobs.train.loss import TrainingLoss
from longtake.jobs.train.plan import build_plan
from longtake.jobs.train.world_model import Edge
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel
from longtake.storage.store import Store, open_store
from longtake.streaming.clips import load_clips
from longtake.training.engine_config import EngineConfig
from longtake.training.fit import fit

if TYPE_CHECKING:
    from longtake.training.context import Context

Positive = Annotated[int, Field(ge=1)]
OURS, BARE = "longtake train", "bare PyTorch"
RUN, FOUND = "bench", "runs/bench/pairs.json"
UNCOUNTED = 3  # pairs at the beginning
WALL, CPU = 0, 1
KEPT = 4  # batches that the bare loop has in its memory


class Settings(Config):
    """Which model, how long."""

    size: Literal["tiny", "small"] = "small"
    frames: Positive = Field(32, multiple_of=2, description="of a clip, one clip a step")
    pairs: Positive = Field(15, description="of steps that count")
    zero: Literal[0, 1, 2, 3] = 1


@dataclass(frozen=True)
class Pairs:
    """(wall-clock, CPU) seconds of each step: ours, and the bare one after it."""

    ours: list[list[float]]
    bare: list[list[float]]

    def ratio(self, clock: int) -> float:
        """Median over the pairs."""
        return statistics.median(ours[clock] / bare[clock] for ours, bare in zip(self.ours, self.bare, strict=True))


def run(settings: Settings) -> list[Row]:
    """Train and compare."""
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        store = open_store(folder)
        measurement = measured(store, training(store, settings), settings)
    case, count = f"{settings.size} {settings.frames} frames", len(measurement.ours)
    sides = {OURS: measurement.ours, BARE: measurement.bare}
    steps = [
        Row(f"{case}: {name}", "step", statistics.median(wall for wall, _ in seconds), "s", count)
        for name, seconds in sides.items()
    ]
    over = f"{case}: {OURS} over {BARE}"
    ratios = {"ratio": measurement.ratio(WALL), "CPU ratio": measurement.ratio(CPU)}
    return steps + [Row(over, name, value, "times", count) for name, value in ratios.items()]


def training(store: Store, settings: Settings) -> WorldModelTraining:
    """The training that is measured, on data written for it."""
    model = size(settings.size)
    written(store, "walks", edge=model.height, frames=settings.frames)
    steps = UNCOUNTED + settings.pairs + 1
    config = WorldModelTraining.model_validate(
        {
            "steps": steps,
            "checkpoint_every": steps,
            "data": {
                "dataset": "walks",
                "frames_per_step": settings.frames,
                "curriculum": [{"frames": settings.frames}],
                "base_segment": settings.frames // 2,
            },
            "validation": {"every": steps, "clips": 1},
            "engine": EngineConfig(zero=settings.zero).model_dump(),
            "model": model.model_dump(),
        }
    )
    check(config, store)
    return config


def written(store: Store, name: str, *, edge: int, frames: int, episodes: int = 12) -> Dataset:
    """Walks past noise: `episodes` of `frames` frames each."""
    making = DatasetWriter(store, name, recipe={}, fps=10.0, action_space={"a": "any"}, pose=["x", "y", "yaw"])
    random = np.random.default_rng(0)
    clips = []
    for _ in range(episodes):
        walk = np.cumsum(random.normal(0, 0.3, (frames, 3)), 0).astype(np.float32)
        pictures = random.integers(0, 256, (frames, edge, edge, 3), dtype=np.uint8)
        clips.append(Episode(pictures, walk[:, :2].copy(), walk))
    making.write_shard(0, clips)
    return making.finalize(1)


def measured(store: Store, config: WorldModelTraining, settings: Settings) -> Pairs:
    """The pairs that count."""
    fit(paired_loop, config, store=store, run_id=RUN, workers=config.workers)
    pairs = json.loads(store.read_bytes(FOUND))
    return Pairs(pairs["ours"][UNCOUNTED:-1], pairs["bare"][UNCOUNTED:-1])


def paired_loop(context: Context, config: WorldModelTraining) -> None:
    """The platform's own loop on a worker; a bare step follows each of its steps."""
    with _bare_process(context.store, config) as bare_step:
        turns = _Turns(context, bare_step)
        train_loop(turns, config)
    context.store.write_bytes(FOUND, json.dumps({"ours": turns.ours, "bare": turns.bare}).encode())


class _Turns:
    """The context of the loop, which tells it at the end of every step how far it is: here a pair ends."""

    def __init__(self, inner: Context, bare_step: Any) -> None:
        self._inner, self._bare_step = inner, bare_step
        self.ours: list[list[float]] = []
        self.bare: list[list[float]] = []
        self._began = clocks()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def progress(self, step: int, of: int, **numbers: float) -> None:
        self._inner.progress(step, of, **numbers)
        self.ours.append(since(self._began))
        self.bare.append(self._bare_step(step - 1))
        self._began = clocks()


def clocks() -> list[float]:
    """Wall-clock and CPU seconds of this process, all threads."""
    return [time.perf_counter(), time.process_time()]


def since(began: list[float]) -> list[float]:
    """Seconds of both since then."""
    return [now - then for now, then in zip(clocks(), began, strict=True)]


@contextmanager
def _bare_process(store: Store, config: WorldModelTraining) -> Iterator[Any]:
    """A function that has another process make one step, and returns the seconds that it took there."""
    spawn = get_context("spawn")
    mine, its = spawn.Pipe()
    process = spawn.Process(target=_bare_loop, args=(its, store, config), daemon=True)
    process.start()

    def step(number: int) -> Any:
        mine.send(number)
        return mine.recv()

    try:
        mine.recv()  # it is ready
        yield step
    finally:
        process.terminate()
        process.join()


def _bare_loop(pipe: Connection, store: Store, config: WorldModelTraining) -> None:
    """What anyone would write without a platform."""
    torch.set_num_threads(config.engine.threads)
    torch.manual_seed(config.seed)
    data = Dataset(store, config.data.first)
    plan = build_plan(config, data, "train")
    kept = [load_clips(data, plan.batch(step)) for step in range(KEPT)]
    model = WorldModel(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.engine.lr)
    objective, edge = TrainingLoss(config, model, model), Edge(config, data, PIXELS, "cpu")
    pipe.send("ready")
    while True:
        number = pipe.recv()
        began = clocks()
        for part in objective.losses(edge.batch(kept[number % KEPT]), number):
            torch.autograd.backward(part)
            part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.engine.clip)
        optimizer.step()
        optimizer.zero_grad()
        pipe.send(since(began))
