"""Cost: what a frame takes after so many others, in time and in bytes carried. It asks nothing of memory's content.

Shown: the last 4, 8, ... up to `context` frames of the context (multiples of what the system takes at a time). Asked:
the `horizon` frames that follow. Per clip, alone, and per length: `prefill_ms`, the time per frame shown; `step_ms`,
the median time per frame made; `memory_bytes`, what is carried after the context, where a system tells. Rows have the
length as `distance` and as `frame`. Lower is better. One thread; times are of the machine that the run's row names, and
no two runs give the same ones, so compare them within one evaluation on an idle machine. 4 episodes are enough.
Shown by: longtake results scores --where "task == 'cost'" --by system,distance
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from longtake.evals.metric import TaskMetric
from longtake.evals.task import Build, EvalClip, Rows, Task
from longtake.evals.tasks.rollout import frame_order

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.evals.systems import System
    from longtake.models.conditions import Conditions

SHORTEST = 4
MEMORY_BYTES = TaskMetric("Memory (bytes)", "lower", 0, "What is carried of the frames shown; lower is better.")
METRICS = {
    "prefill_ms": TaskMetric("Time per frame shown (ms)", "lower", 2, "Time per frame shown; lower is better."),
    "step_ms": TaskMetric("Time per frame made (ms)", "lower", 1, "Time per frame made; lower is better."),
    "memory_bytes": MEMORY_BYTES,
}


def measure(
    build: Build,
    protocol: Protocol,
    questions: Sequence[EvalClip],
    conditions: Conditions,
) -> Rows:
    """Rows of every clip, one after another, each length with a fresh system."""
    rows: Rows = []
    for clip, question in enumerate(questions):
        own = conditions.clips(clip, clip + 1)
        _timed(build([question]), protocol, question, own, SHORTEST)  # what is made or loaded at first use
        for length in lengths(protocol.context, build([question]).frames_per_step):
            costs = _timed(build([question]), protocol, question, own, length)
            label = {"episode": question.episode, "frame": length, "distance": length}
            rows += [
                {**label, "metric": name, "value": costs[name], "better": METRICS[name].better}
                for name in protocol.metrics
                if name in costs
            ]
    return rows


def lengths(context: int, stride: int) -> list[int]:
    """Powers of two up to the context, and the context, as multiples of the stride; ascending."""
    multiples = {context}
    length = SHORTEST
    while length < context:
        multiples.add(max(stride, length // stride * stride))
        length *= 2
    return sorted(multiples)


def _timed(
    system: System, protocol: Protocol, question: EvalClip, conditions: Conditions, length: int
) -> dict[str, float]:
    """What the last `length` context frames and each frame after them take."""
    import torch

    context, total = protocol.context, protocol.context + protocol.horizon
    length = min(context, max(system.frames_per_step, length))
    frames = torch.from_numpy(question.frames[context - length : context])[None]
    began = time.perf_counter()
    system.observe(frames, conditions.frames(context - length, context))
    costs = {"prefill_ms": (time.perf_counter() - began) * 1e3 / length}
    carried = getattr(system, "nbytes", None)
    if carried is not None:
        costs["memory_bytes"] = float(carried)
    step_times = _steps(system, conditions, range(context, total, system.frames_per_step), total)
    return {**costs, "step_ms": statistics.median(step_times)}


def _steps(system: System, conditions: Conditions, starts: range, total: int) -> Iterator[float]:
    for start in starts:
        stop = min(start + system.frames_per_step, total)
        began = time.perf_counter()
        system.step(conditions.frames(start, stop))
        yield (time.perf_counter() - began) * 1e3 / (stop - start)


TASK = Task(frame_order, compared_with="nothing", measure=measure, metrics=METRICS)
