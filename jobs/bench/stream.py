"""Clips per second, bytes and memory of the stream, beside a plain torch DataLoader on the same shards and decoder.

Random episodes are written below `place` (a folder, or s3://BUCKET/PREFIX to measure an object storage). Each round
takes `steps` batches from the platform, through Ray Data, and then from a DataLoader of two worker processes that reads
one clip per item and hands tensors over in shared memory, both running and warm; wall-clock seconds, in which every
frame is looked at once, as a copy to a GPU does. `speedup` is the median over rounds, the bar 1.0.
With `mosaic`, a Python that has mosaicml-streaming, its two workers take their turn in every round, on the same
episodes as its users lay them out: a sample is a clip, so that clips can begin at fixed borders only, zstd, shuffled.
`cold cache` is one epoch from nothing unpacked (from S3: nothing downloaded), and is compared with one epoch of the
platform that begins then; `warm cache` goes on from what that left on the local disk (raw clips, or their video), and
holds only for data that fits there. From S3, both are compared with the platform through a copy of its own on the local
disk (LONGTAKE_CACHE_GB); all else is measured without one.
`bytes read` counts what one epoch asks of the storage, by a process that has read nothing before, over what its clips'
frames, actions and poses take there, bar 1.3; once more with starts drawn anew, for which half a chunk more is read at
either end; and from S3 for the first epoch through an empty cache, which reads whole blocks.
`memory` is the proportional set of all processes of the job, shared memory included, above that of an idle Ray: its
peaks in the first and in the last third of `stream_gb` of frames, which are to be the same, and 1.2 GB at most. This
process stands for a worker of Ray's, so its threads share two heaps as theirs do.
`data wait` is the share of the time that a step which would use 80 % of those clips a second waits for them, bar 0.05.
About three minutes, and as much again for every ten GB.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from pydantic import Field
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from longtake.cluster.demand import Demand
from longtake.cluster.launch import launch
from longtake.config import Config
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Codec
from longtake.datasets.writer import DatasetWriter
from longtake.jobs.bench.mosaic import COLD, WARM, beside
from longtake.jobs.bench.timing import Row
from longtake.jobs.train.loop import timed
from longtake.provenance import new_run_id
from longtake.storage.store import Store, open_store
from longtake.streaming.clips import load_clips
from longtake.streaming.loader import batches
from longtake.streaming.plan import Plan

Positive = Annotated[int, Field(ge=1)]
Tensors = dict[str, torch.Tensor]
OURS, THEIRS = "longtake", "DataLoader, 2 workers"
OURS_EPOCH, OURS_COLD, OURS_WARM = "longtake, one epoch", "longtake, cold cache", "longtake, warm cache"
ENDLESS = 10**9  # steps
LOAD = 0.8  # of the clips a second that the stream can give
READY_BYTES = 450e6  # of batches that a source may have made before it is measured
SAMPLE_S = 0.25  # between two looks at memory
M_ARENA_MAX = -8  # of glibc's malloc.h


class Settings(Config):
    """Which data, which clips, how often."""

    place: str = Field("", description="a folder or s3://BUCKET/PREFIX to work below; a temporary folder if empty")
    episodes: Positive = 64
    frames: Positive = Field(1000, description="per episode")
    edge: Positive = Field(64, description="height and width, in pixels")
    codec: Codec = "zstd"
    clip: Positive = Field(64, description="frames per clip")
    clips: Positive = Field(16, description="per batch")
    chunk: Positive = Field(32, description="frames per chunk of a shard")
    steps: Positive = Field(100, description="batches per round")
    rounds: Positive = 5
    waiting: Positive = Field(1100, description="steps of a trainer whose waits are counted; more than a window")
    mosaic: str = Field("", description="a Python that has mosaicml-streaming, to measure it too; left out if empty")
    stream_gb: float = Field(2.0, ge=0, description="of frames, for the peaks of memory; 0 leaves them out")


def run(settings: Settings) -> list[Row]:
    """Measure everything on one dataset."""
    _two_heaps()
    with _place(settings.place) as store, _own_cache(), launch(Demand(1), object_store_mb=400):
        written(store, settings)
        data = Dataset(store, "stream", cache_bytes=0)
        case = f"{settings.edge}x{settings.edge} {settings.codec}, {'folder' if store.is_folder else 's3'}"
        idle = footprint()
        plan = plan_of(data, settings)
        # First: what the others leave in this process, and in idle ones of Ray's, is not of a stream.
        memory = [*_memory(case, data, plan, settings, idle)] if settings.stream_gb else []
        speed = [*_speed(case, data, plan, settings)]
        waiting = _waiting(case, data, plan, settings, ceiling=speed[0].value)
        return [*speed, waiting, *memory, *_bytes(f"{case}, chunks of {settings.chunk}", data, settings)]


def _two_heaps() -> None:
    """What MALLOC_ARENA_MAX in `longtake.cluster.launch.ENVIRONMENT` does for a worker, for a process that runs
    already."""
    with suppress(AttributeError):  # only glibc has heaps of threads
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


@contextmanager
def _place(given: str) -> Iterator[Store]:
    if given:
        yield open_store(f"{given.rstrip('/')}/bench-stream-{new_run_id()}")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield open_store(folder)


@contextmanager
def _own_cache() -> Iterator[None]:
    """An empty one for this benchmark, which the processes of its Ray inherit."""
    with (
        tempfile.TemporaryDirectory(prefix="longtake-cache-") as folder,
        patch.dict(os.environ, LONGTAKE_CACHE=folder),
    ):
        yield


def written(store: Store, settings: Settings) -> Dataset:
    """Episodes that compress about as far as those of a maze: drifting blocks of colour with a little noise.

    Without loss half of it is drawn anew in every frame, or they would take a tenth of a maze's bytes: about one in two
    of them is left, mazes leave one in 1.4 to 2.9. A video keeps a still one.
    """
    making = DatasetWriter(
        store,
        "stream",
        recipe={},
        fps=10.0,
        action_space={"a": "any"},
        pose=["x", "y", "yaw"],
        codec=settings.codec,
        chunk=settings.chunk,
    )
    per_shard, shape = 8, (settings.frames, settings.edge, settings.edge, 3)
    for first in range(0, settings.episodes, per_shard):
        episodes = []
        for number in range(first, min(first + per_shard, settings.episodes)):
            random = np.random.default_rng(number)
            walk = np.cumsum(random.normal(size=(settings.frames, 3)), 0).astype(np.float32)
            episodes.append(Episode(_pictures(shape, random, settings.codec == "video"), walk[:, :2].copy(), walk))
        making.write_shard(first // per_shard, episodes)
    return making.finalize(-(-settings.episodes // per_shard))


def _pictures(shape: tuple[int, ...], random: np.random.Generator, still: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Frames of this shape; unless the noise is `still`, the lower half of every frame has its own."""
    frames, edge = shape[0], shape[1]
    wide = random.integers(0, 224, (edge // 8, 4 * edge // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    noise = random.integers(0, 8, (edge, 4 * edge, 3), dtype=np.uint8)
    shifts = np.cumsum(random.integers(-3, 4, frames)) % (3 * edge)
    wide = wide + noise
    pictures = np.stack([wide[:, shift : shift + edge] for shift in shifts])
    if not still:
        pictures[:, edge // 2 :] += random.integers(0, 8, pictures[:, edge // 2 :].shape, dtype=np.uint8)
    return pictures


def plan_of(data: Dataset, settings: Settings, random_start: bool = False) -> Plan:
    """Clips of a training on this data."""
    return Plan.of(
        data,
        "train",
        stages=[(None, settings.clip)],
        frames_per_step=settings.clip * settings.clips,
        base_segment=settings.clip,
        seed=0,
        random_start=random_start,
    )


# --- speed --------------------------------------------------------------------------------------------------


class Clips(TorchDataset[Tensors]):
    """Item i is clip i of the plan's line: what anyone would write for a DataLoader."""

    def __init__(self, data: Dataset, plan: Plan, count: int) -> None:
        self.data, self.plan, self.count = data, plan, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Tensors:
        size = self.plan.frames_per_step // self.plan.frames_at(0)
        step, slot = divmod(item, size)
        whole = self.plan.batch(step)
        rows = {name: getattr(whole, name)[slot : slot + 1] for name in ("episode", "start", "slot", "order")}
        clip = dataclasses.replace(whole, size=1, **rows)
        clips = vars(load_clips(self.data, clip))
        arrays = {name: array for name, array in clips.items() if isinstance(array, np.ndarray)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _collate(clips: list[Tensors]) -> Tensors:
    """PyTorch's own, which stacks in shared memory."""
    return {name: tensor.flatten(0, 1) for name, tensor in default_collate(clips).items()}


def _loader(data: Dataset, plan: Plan, settings: Settings) -> Iterator[Any]:
    count = settings.clips * (settings.rounds + 1) * (settings.steps + _ready(data, plan))
    clips = Clips(data, plan, count)
    # A process that holds Ray must not be forked.
    loader = DataLoader(clips, settings.clips, num_workers=2, collate_fn=_collate, multiprocessing_context="spawn")
    return iter(loader)


def _ready(data: Dataset, plan: Plan) -> int:
    """Batches that are taken first, and not counted."""
    return max(8, math.ceil(READY_BYTES / _step_bytes(data, plan)))


def _step_bytes(data: Dataset, plan: Plan) -> int:
    return plan.frames_per_step * math.prod(data.frame_shape)


def _speed(case: str, data: Dataset, plan: Plan, settings: Settings) -> Iterator[Row]:
    ours, theirs = _Platform(data, plan, settings), _loader(data, plan, settings)
    skip = _ready(data, plan)
    turns: dict[str, Callable[[], float]] = {
        OURS: ours.running,
        THEIRS: lambda: _rate((batch["frames"] for batch in theirs), skip, settings),
    }
    rivals = {THEIRS: OURS}
    with beside(settings.mosaic, data, settings.clip, settings.clips, skip, settings.steps) as more:
        turns |= more
        if more and data.store.is_folder:
            turns |= {OURS_EPOCH: ours.epoch}
            rivals |= {COLD: OURS_EPOCH, WARM: OURS}
        elif more:
            cached = _Platform(Dataset(data.store, data.name, cache_bytes=_enough(data)), plan, settings)
            turns |= {OURS_COLD: cached.epoch, OURS_WARM: cached.running}
            rivals |= {COLD: OURS_COLD, WARM: OURS_WARM}
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(settings.rounds + 1):
            for name, rate in turns.items():
                speed = rate()
                if number:
                    rates[name].append(speed)
    for name, found_in_rounds in rates.items():
        yield Row(f"{case}: {name}", "clips", statistics.median(found_in_rounds), "1/s", settings.rounds)
    for name, mine in rivals.items():
        ratios = [one / other for one, other in zip(rates[mine], rates[name], strict=True)]
        yield Row(f"{case}: {mine} over {name}", "speedup", statistics.median(ratios), "times", settings.rounds)


def _enough(data: Dataset) -> int:
    """Bytes of a cache that holds all of it."""
    return 2 * data.manifest.bytes + 2**30


def _empty_cache() -> None:
    for old in Path(os.environ["LONGTAKE_CACHE"]).iterdir():
        shutil.rmtree(old)


class _Platform:
    """The stream of one dataset, begun anew for every turn, where the one before ended."""

    def __init__(self, data: Dataset, plan: Plan, settings: Settings) -> None:
        self._data, self._plan, self._settings, self._step = data, plan, settings, 0

    def running(self) -> float:
        """Clips a second, once it runs."""
        skip, stream = _ready(self._data, self._plan), self._from(self._step, ENDLESS)
        speed = _rate((batch.frames for _, batch in stream), skip, self._settings)
        stream.close()
        self._step += skip + self._settings.steps
        return speed

    def epoch(self) -> float:
        """Clips a second over one epoch, the start of its pipeline included; from an empty cache, if it has one."""
        for _ in self._from(self._step, self._step + 1):  # in a process that runs, as the others' do
            pass
        steps = self._plan.steps_per_epoch
        number = math.ceil(self._step / steps)
        first, self._step = math.ceil(number * steps), math.floor((number + 1) * steps)
        _empty_cache()
        began = time.perf_counter()
        for _, batch in self._from(first, self._step):
            batch.frames.max()
        return (self._step - first) * self._settings.clips / (time.perf_counter() - began)

    def _from(self, start: int, stop: int) -> Generator[Any]:
        yield from batches(self._data, self._plan, 0, 1, start, stop)


def _rate(source: Iterator[Any], skip: int, settings: Settings) -> float:
    """Clips a second over one round; what was made ready before is taken first, and not counted."""
    for _ in itertools.islice(source, skip):
        pass
    began = time.perf_counter()
    for frames in itertools.islice(source, settings.steps):
        np.asarray(frames).max()
    return settings.steps * settings.clips / (time.perf_counter() - began)


# --- waiting ------------------------------------------------------------------------------------------------


def _waiting(case: str, data: Dataset, plan: Plan, settings: Settings, ceiling: float) -> Row:
    """What a trainer waits whose step, on a device of its own, would use 80 % of `ceiling` clips a second."""
    step_s, warm = settings.clips / (LOAD * ceiling), _ready(data, plan)
    waits = []
    for _, _, waited in timed(batches(data, plan, 0, 1, 0, settings.waiting + warm)):
        waits.append(waited)
        time.sleep(step_s)
    counted = sum(waits[warm:])
    share = counted / (counted + settings.waiting * step_s)
    return Row(f"{case}: {OURS} at {LOAD:.0%}", "data wait", share, "share", 1)


# --- bytes --------------------------------------------------------------------------------------------------


def _bytes(case: str, data: Dataset, settings: Settings) -> Iterator[Row]:
    fixed, drawn = plan_of(data, settings), plan_of(data, settings, random_start=True)
    yield Row(f"{case}, clips from fixed borders", "bytes read", bytes_read_over_used(data, fixed), "times", 1)
    yield Row(f"{case}, starts drawn anew", "bytes read", bytes_read_over_used(data, drawn), "times", 1)
    if not data.store.is_folder:
        _empty_cache()
        read = bytes_read_over_used(data, drawn, cache_bytes=_enough(data))
        yield Row(f"{case}, starts drawn anew, cold cache", "bytes read", read, "times", 1)


def bytes_read_over_used(data: Dataset, plan: Plan, cache_bytes: int = 0) -> float:
    """Of the clips of an epoch, read by a process that has read nothing before."""
    fresh, used = Dataset(open_store(data.store.uri), data.name, cache_bytes), 0.0
    opened = fresh.bytes_read
    stored = {int(row["episode"]): _bytes_per_frame(data, row) for row in data.index.to_dict("records")}
    for step in range(math.ceil(plan.steps_per_epoch)):
        batch = plan.batch(step)
        load_clips(fresh, batch)
        used += sum(stored[episode] * batch.source for episode in batch.episode.tolist())
    return (fresh.bytes_read - opened) / used


def _bytes_per_frame(data: Dataset, row: dict[Any, Any]) -> float:
    return float(sum(int(np.sum(row[f"{spec.name}_size"])) for spec in data.manifest.arrays) / row["length"])


# --- memory -------------------------------------------------------------------------------------------------


def footprint() -> int:
    """Bytes of this process and all below it, pages that several share counted once."""
    total, me = 0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def _memory(case: str, data: Dataset, plan: Plan, settings: Settings, idle: int) -> Iterator[Row]:
    step_bytes = _step_bytes(data, plan)
    steps = max(3, round(settings.stream_gb * 1e9 / step_bytes))
    seen = [[idle], [idle], [idle]]
    now, ended = 0, threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            seen[min(2, 3 * now // steps)].append(footprint())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for now, _ in batches(data, plan, 0, 1, 0, steps):  # noqa: B007
            pass
    finally:
        ended.set()
        watcher.join()
    for name, third in (("first third", seen[0]), ("last third", seen[2])):
        yield Row(f"{case}, {steps * step_bytes / 1e9:.1f} GB", f"memory, {name}", (max(third) - idle) / 1e6, "MB", 1)
