"""The reader of the plan's benchmark, in a process of its own that imports little, so that its peak is the plan's."""

from __future__ import annotations

import time
from pathlib import Path

from longtake.storage.store import open_store
from longtake.streaming.plan import Plan

EPOCHS = 0, 3  # the first and one that has another order
PLACES = 0.0, 0.5, 1.0  # of an epoch: its start, middle and end


def look(uri: str, name: str, clip: int, clips: int) -> dict[str, float]:
    """Seconds to open a dataset, to make its plan, and of the slowest of some steps; the peak of this process in MB."""
    began = time.perf_counter()
    data = open_store(uri).dataset(name)
    opened = time.perf_counter()
    plan = Plan.of(
        data, "train", stages=[(None, clip)], frames_per_step=clip * clips, base_segment=clip, seed=0, random_start=True
    )
    constructed = time.perf_counter()
    last = int(plan.steps_per_epoch) - 1
    steps = [int(plan.steps_per_epoch * epoch) + round(last * place) for epoch in EPOCHS for place in PLACES]
    slowest = max(_seconds(plan, step) for step in steps)
    return {"open": opened - began, "plan": constructed - opened, "step": slowest, "memory": _peak_bytes() / 1e6}


def _seconds(plan: Plan, step: int) -> float:
    began = time.perf_counter()
    plan.batch(step)
    return time.perf_counter() - began


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
