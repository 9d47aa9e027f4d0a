"""Time and peak memory of one training step or one generated frame, in a process of its own under hard limits.

The processes are forked from a server that has imported everything and computed nothing: they start in milliseconds,
and their peak is their own. Memory is what a process needs on top of what it started with.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch

from longtake.models.config import ModelConfig, SamplerConfig

ENOUGH_S = 1.0
"""A call is repeated until it has taken so long in total, or so often:"""
REPETITIONS = 5
LINUX = sys.platform == "linux"


@dataclass(frozen=True)
class Cell:
    """What to measure: a training step on one clip of `frames`, or one generated frame after `frames` of context."""

    what: Literal["train", "frame"]
    config: ModelConfig
    frames: int


@dataclass(frozen=True)
class Measured:
    """What came of it; without numbers, the reason."""

    seconds: float | None = None
    """Median of the repetitions, the first call left out where there is time for more; of a frame, in chunks too."""
    repetitions: int = 0
    peak_bytes: int | None = None
    reason: str = ""


class Meter:
    """Measures cells, one at a time.

    Args:
        seconds: after so long a cell is ended.
        memory: bytes that a cell may take; what is free now, when None.
    """

    def __init__(self, seconds: float, memory: int | None = None) -> None:
        self.seconds = seconds
        self.memory = memory or free_bytes()
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["longtake.jobs.profile.children"])

    def __call__(self, cell: Cell) -> Measured:
        """Measure one."""
        ours, theirs = self._context.Pipe(duplex=False)
        child = self._context.Process(target=_report, args=(theirs, cell, self.seconds, self.memory), daemon=True)
        child.start()
        theirs.close()
        try:
            if not ours.poll(STARTING_S):
                raise TimeoutError(f"a process to measure in did not start within {STARTING_S:g} s")
            ours.recv()  # it runs: from here its time counts
            return ours.recv() if ours.poll(self.seconds) else Measured(reason=f"not done in {self.seconds:g} s")
        except EOFError:
            return Measured(reason="ended by the system, for want of memory most likely")
        finally:
            child.kill()
            child.join()


STARTING_S = 60.0
"""For the first process: its server imports torch."""


def _report(pipe: Connection, cell: Cell, seconds: float, memory: int) -> None:
    """In the child: measure, and say what came of it."""
    pipe.send("started")
    try:
        pipe.send(_measure(cell, seconds, memory))
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises RuntimeError
        if "allocate memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        pipe.send(Measured(reason=_too_large(memory)))


def _too_large(memory: int) -> str:
    return f"does not fit into {memory / 2**30:.2g} GiB"


def _measure(cell: Cell, seconds: float, memory: int) -> Measured:
    before = _status("VmRSS") if LINUX else _peak()
    if LINUX:  # elsewhere this limit does not hold what is mapped
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + memory, resource.RLIM_INFINITY))
    began = time.monotonic()
    call = {"train": _training_step, "frame": _generated_frame}[cell.what](cell)
    times: list[float] = []
    while not times or (time.monotonic() - began < seconds / 2 and len(times) <= REPETITIONS and sum(times) < ENOUGH_S):
        start = time.monotonic()
        call()
        times.append(time.monotonic() - start)
    peak = max(0, _peak() - before)
    if peak > memory:  # the limit above does not see what was free in the heap
        return Measured(reason=_too_large(memory))
    kept = times[1:] or times
    frames = (cell.config.chunk or 1) if cell.what == "frame" else 1
    return Measured(statistics.median(kept) / frames, len(kept), peak)


def _training_step(cell: Cell) -> Callable[[], object]:
    """Forward, backward and AdamW, one clip, nothing recomputed."""
    from longtake.models.analysis.cost import show
    from longtake.models.world_model import WorldModel

    torch.manual_seed(0)
    model = WorldModel(cell.config)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        show(model, cell.frames).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _generated_frame(cell: Cell) -> Callable[[], object]:
    """One frame (a chunk of them in the chunk form) by the default sampler."""
    from longtake.models.analysis.cost import conditions_for, remembered
    from longtake.models.rollout import rollout
    from longtake.models.world_model import WorldModel

    torch.manual_seed(0)
    model = WorldModel(cell.config).eval()
    memory = remembered(model, cell.frames)
    together = cell.config.chunk or 1
    conditions, generators = conditions_for(cell.config, together), [torch.Generator()]
    return lambda: rollout(model, conditions, together, memory, SamplerConfig(), generators)


def free_bytes() -> int:
    """Memory that this machine can hand out now; where it does not say, all that it has."""
    if LINUX:
        return _field("/proc/meminfo", "MemAvailable")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _peak() -> int:
    """The largest resident size of this process so far, bytes."""
    if LINUX:  # getrusage would answer for the process that this one was forked from too
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    return _field("/proc/self/status", name)


def _field(file: str, name: str) -> int:
    """Bytes of a field of such a file."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
