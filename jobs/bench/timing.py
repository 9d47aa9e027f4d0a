"""How benchmarks measure: in turns, in CPU seconds of one thread; memory in processes of their own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """One number."""

    case: str
    metric: str
    value: float
    unit: str
    repetitions: int


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes in this thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant in each round, after one round that does not count.

    A round calls every one of them once, so what slows the machine for a while slows them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, call in contestants.items():
            began = time.process_time()
            call()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def speedup(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of how many times longer theirs took."""
    return statistics.median(other / one for one, other in zip(ours, theirs, strict=True))


def extra_memory(prepare: Callable[[], Callable[[], object]]) -> int:
    """Bytes that the call made by `prepare` needs on top of what it was given: peak less start, in a new process.

    `prepare` must be importable from there (a function of a module, or a partial of one). Linux only.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_extra_memory, prepare).result()


def _extra_memory(prepare: Callable[[], Callable[[], object]]) -> int:
    with one_thread():
        call = prepare()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
        call()
        return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
