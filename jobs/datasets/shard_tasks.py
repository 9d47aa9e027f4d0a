"""Making the shards of a dataset as Ray tasks, one task a shard, with a bar: what collecting and ingesting share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from longtake.datasets.dataset import Dataset
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs.display.progress_bar import bar

MakeShard = Callable[[int], int]
"""Shard number → its frames; picklable, and a shard that is made twice is the same."""


def reused(writer: DatasetWriter) -> Dataset:
    """The dataset that was there already, and a line that says so."""
    print(f"dataset {writer.name}: finished before with the same config, reused")
    return Dataset(writer.store, writer.name)


def missing_shards(writer: DatasetWriter, shards: int) -> list[int]:
    """Those of a dataset's shards that are not there; says how many are."""
    missing = [shard for shard in range(shards) if not writer.done(shard)]
    if len(missing) < shards:
        print(f"dataset {writer.name}: {shards - len(missing)} of {shards} shards reused")
    return missing


def make_missing(verb: str, writer: DatasetWriter, make: MakeShard, shards: int, cpus: int | None) -> None:
    """Make those of a dataset's shards that are not there."""
    if missing := missing_shards(writer, shards):
        make_shards(f"{verb} {writer.name}", make, missing, shards, cpus)


def make_shards(label: str, make: MakeShard, shards: Sequence[int], of: int, cpus: int | None) -> None:
    """Make these shards of `of` on all CPUs of the Ray that is open, or of a local one."""
    import ray

    from longtake.cluster.demand import Demand
    from longtake.cluster.launch import launch

    began = time.monotonic()
    with launch(Demand(1, cpus_per_worker=1, data_cpus_per_worker=0), cpus=cpus), bar(label, "starting Ray") as show:
        task, shared = ray.remote(_make).options(num_cpus=1, max_retries=3), ray.put(make)
        waiting = [task.remote(shared, shard) for shard in shards]
        frames, reused = 0, of - len(shards)
        show(reused, of)
        for done in range(1, len(shards) + 1):
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            frames += _result(ready)
            show(reused + done, of, f"{frames / (time.monotonic() - began):.0f} frames/s")


def _make(make: MakeShard, shard: int) -> int:
    return make(shard)


def _result(reference: Any) -> int:
    """Frames of a finished shard; a task's own error without Ray's wrapping."""
    import ray

    try:
        return int(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError | OSError) else error from None
