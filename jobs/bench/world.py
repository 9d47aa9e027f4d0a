"""A world that one holds: frames a second alone and many in one batch, and that 3,000 frames cost no more than a few.

The model is the demo's in size, with random weights: what it makes is noise, what it costs is the same. `single` is one
stream; `batch` is how many times more frames a second so many streams give in one batch than one after another;
`ratio` is the median time of the last hundred frames over that of the first hundred; `growth` the slope of resident
memory over the frames, as a share of it, after the first tenth. CPU seconds of one thread. About three minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import psutil
import torch
from pydantic import Field

from longtake.config import Config, load
from longtake.datasets.controls import Control, Controls, Motion
from longtake.jobs.bench.timing import Row, in_turns, one_thread, speedup
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.models.config import SamplerConfig
from longtake.models.streams import Streams
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel
from longtake.worlds.about import About
from longtake.worlds.history import History, Moment
from longtake.worlds.source import WorldSource
from longtake.worlds.world import STATES, World

Positive = Annotated[int, Field(ge=1)]
CONTROLS = Controls(
    controls=(
        Control(name="forward", keys=("ArrowUp",), action=(1, 0)),
        Control(name="turn", keys=("ArrowLeft",), action=(0, 1)),
    ),
    bounds=((0, 1), (-1, 1)),
    motion=Motion(gain=((0.3, 0), (0, 0), (0, 0.5))),
)


class Settings(Config):
    """Which model, and how many frames."""

    training: str = Field("demo-block-ssm", description="a config, whose model it is")
    context: Positive = Field(16, description="frames shown first")
    streams: Positive = Field(64, description="in one batch")
    rounds: Positive = Field(5, description="of single and batch, in turns")
    frames: Annotated[int, Field(ge=200)] = Field(3000, description="of the long walk")
    sampler: SamplerConfig = SamplerConfig(steps=2, context_noise=0.1)


def run(settings: Settings) -> list[Row]:
    """Measure."""
    with one_thread():
        return [*_batch(settings), *_long(settings)]


def fresh(settings: Settings, streams: int, states: int = STATES) -> World:
    """A world of random weights in which a context of noise was seen."""
    config = load(WorldModelTraining, settings.training, search=train.CONFIGS).model
    torch.manual_seed(0)
    shape = (config.height, config.width, config.channels)
    about = About(name="noise", dataset="none", frame_shape=shape, fps=10, controls=CONTROLS, pose=["x", "y", "yaw"])
    source = WorldSource(WorldModel(config).eval(), PIXELS, about, "none", "none", None)
    output = Streams(source.model, PIXELS, settings.sampler, list(range(streams)))
    moment = Moment(output.state)
    world = World(source, output, moment, History(moment, CONTROLS.width, states), single=False, beyond=True)
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (streams, settings.context, *shape), dtype=np.uint8)
    world.observe(seen, actions=np.zeros((streams, settings.context, CONTROLS.width)))
    return world


def _batch(settings: Settings) -> Iterator[Row]:
    one, many = fresh(settings, 1), fresh(settings, settings.streams, states=0)
    seconds = in_turns({"one": lambda: one.step("forward"), "many": lambda: many.step("forward")}, settings.rounds)
    single = statistics.median(seconds["one"])
    times = speedup([value / settings.streams for value in seconds["many"]], seconds["one"])
    yield Row("one stream", "single", 1 / single, "frames/s", settings.rounds)
    yield Row("one stream", "memory", one.nbytes / 1e6, "MB", 1)
    yield Row(f"{settings.streams} streams", "batch", times, "times", settings.rounds)


def _long(settings: Settings) -> Iterator[Row]:
    world, process = fresh(settings, 1), psutil.Process()
    seconds, resident = [], []
    for _ in range(settings.frames):
        began = time.process_time()
        world.step("turn")
        seconds.append(time.process_time() - began)
        resident.append(process.memory_info().rss)
    hundred = (statistics.median(seconds[:100]), statistics.median(seconds[-100:]))
    late = np.array(resident[settings.frames // 10 :], float)
    slope = np.polyfit(np.arange(len(late)), late, 1)[0] * len(late) / late.mean()
    case = f"{settings.frames} frames"
    yield Row(case, "ratio", hundred[1] / hundred[0], "times", 100)
    yield Row(case, "growth", 100 * float(slope), "%", len(late))
    yield Row(case, "memory", world.nbytes / 1e6, "MB", 1)
