"""What a metric is: the face of all, and the three kinds.

A metric is one file of `evals/metrics/` that holds a `METRIC`; docs/adding-a-metric.md shows how. What only one task
measures stands in that task's file (`Task.metrics`).

Letters: b clips, t frames, H and W pixels, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""One frame (H, W, 3)."""
Clips = NDArray[np.uint8]
"""Clips (b, t, H, W, 3)."""
Values = NDArray[np.float64]
"""One value per frame (b, t)."""
Features = NDArray[np.float64]
"""What a net sees in clips (b, F)."""
Better = Literal["higher", "lower", "zero"]
LAST = 100
"""The rank of a metric that does not say where it stands."""


class Metric:
    """The face: what tables, pages, searches and checks know of any metric."""

    title: str
    """With its unit."""
    better: Better
    """Which way it points; `zero`: best at 0."""
    digits: int
    """Decimals worth printing."""
    rank: int
    """Its place where several are shown: the lower, the earlier; of equals by name."""
    explained: str
    """What it is, in a sentence for a page; empty where its title says so."""
    weights: str | None
    """What it needs of `longtake.models.perceptual.weights.FILES`."""
    smallest: int
    """Pixels a side that frames need: a window of the metric has to fit."""

    @property
    def heading(self) -> str:
        """The title, with the direction where it is not up."""
        return self.title + {"higher": "", "lower": ", lower is better", "zero": ", best at 0"}[self.better]

    def goodness(self, value: float) -> float:
        """The larger, the better."""
        return {"higher": value, "lower": -value, "zero": -abs(value)}[self.better]


@dataclass(frozen=True)
class FrameMetric(Metric):
    """A value for every frame made, against the truth of the same moment."""

    title: str
    better: Better
    digits: int
    measure: Callable[[Clips, Clips], Values]
    """From truth and made, of one shape; see `each_frame`."""
    rank: int = LAST
    explained: str = ""
    weights: str | None = None
    smallest: int = 1


@dataclass(frozen=True)
class SetMetric(Metric):
    """A distance between two sets of whole clips, context included: one value for all clips of a system.

    Clips are scored in many places, so what the metric knows of a clip is kept as features, and compared in the end.
    """

    title: str
    better: Better
    digits: int
    features: Callable[[Clips], Features]
    distance: Callable[[Features, Features], float]
    """From the features of the true and of the made clips."""
    folder: str
    """Of the store, where features are kept; each such metric has one of its own."""
    rank: int = LAST
    explained: str = ""
    weights: str | None = None
    smallest: int = 1
    fewest_frames: int = 1
    """Frames that a clip needs."""
    fewest_clips: int = 2
    """Clips that a set needs."""
    full_rank: int = 2
    """Clips below which the covariance of their features lacks full rank; told beside the value."""


@dataclass(frozen=True)
class TaskMetric(Metric):
    """What a task measures in its own way; it stands in the task's file."""

    title: str
    better: Better
    digits: int
    card: str
    """What it says, from where to where; one sentence."""
    rank: int = LAST
    explained: str = ""
    weights: str | None = None
    smallest: int = 1


def each_frame(measure: Callable[[Frame, Frame], float]) -> Callable[[Clips, Clips], Values]:
    """A measure of one frame, of all frames of clips."""

    def measure_clips(truth: Clips, generated: Clips) -> Values:
        flat = [clips.reshape(-1, *clips.shape[2:]) for clips in (truth, generated)]
        return np.array([measure(*pair) for pair in zip(*flat, strict=True)]).reshape(generated.shape[:2])

    return measure_clips
