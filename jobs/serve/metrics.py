"""How a service does: sessions, frames a second, how long a step takes, how large batches are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW_S = 30.0
"""Seconds that are looked back upon."""
MOST = 10_000


@dataclass(frozen=True)
class Sample:
    """One replica's last seconds. `steps`: (seconds since it was answered, seconds it took, frames it made)."""

    held: int
    least: int
    sizes: Sequence[int]
    steps: Sequence[tuple[float, float, int]]


class Meter:
    """The steps of the last seconds of one replica."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=MOST)

    def add(self, seconds: float, frames: int) -> None:
        """A step was answered after so many seconds."""
        self._steps.append((time.monotonic(), seconds, frames))

    def sample(self, held: int, least: int, sizes: Sequence[int]) -> Sample:
        """What there is to tell."""
        now = time.monotonic()
        steps = [(now - at, seconds, frames) for at, seconds, frames in self._steps if now - at <= WINDOW_S]
        return Sample(held, least, list(sizes), steps)


def summary(samples: Mapping[str, Sample], sessions: int) -> dict[str, Any]:
    """All replicas as one answer; rates and times are of the last seconds, 0 where there was no step."""
    steps = [step for sample in samples.values() for step in sample.steps]
    span = max([1.0, *(age for age, _, _ in steps)])
    took = [1000 * seconds for _, seconds, _ in steps] or [0.0]
    sizes = [size for sample in samples.values() for size in sample.sizes] or [0]
    return {
        "sessions": sessions,
        "sessions_in_memory": sum(sample.held for sample in samples.values()),
        "replicas": len(samples),
        "frames_per_s": round(sum(frames for _, _, frames in steps) / span, 2),
        "p50_ms": round(float(np.percentile(took, 50)), 1),
        "p99_ms": round(float(np.percentile(took, 99)), 1),
        "batch_mean": round(float(np.mean(sizes)), 1),
        "batch_least": max((sample.least for sample in samples.values()), default=0),
    }
