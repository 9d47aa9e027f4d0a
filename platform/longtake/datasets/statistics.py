"""What the numbers of a dataset are like, column by column: of its continuous actions, its poses and its vectors.

Each episode tells its own when it is written (`of_episode`), and those of the training split are put together when the
dataset is finished (`merged`), so no shard is read twice. Means and deviations are exact; quantiles are of up to
SAMPLES frames of each episode, evenly spaced. The null action is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from longtake.datasets.episode import LABEL, Episode
from longtake.datasets.shard import Array
from longtake.motion import PoseKind

SAMPLES = 64  # frames of an episode that quantiles are taken from
COLUMNS = 256  # of a vector at most; what is wider is no vector of state
DISTANCE = "distance"
"""Of every place from the first one of its episode, in the units of the pose: one column."""
LOW, HIGH = 0.01, 0.99


class ColumnStatistics(BaseModel):
    """Of every column of an array over all frames: mean, standard deviation, least and largest, and of a sample the
    median and the quantiles LOW and HIGH."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    least: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    largest: tuple[float, ...]


Statistics = dict[str, ColumnStatistics]
"""By the name of the array, and DISTANCE."""


def of_episode(episode: Episode, kind: PoseKind | None) -> str:
    """What one episode adds, as JSON: count, mean, sum of squared deviations, extremes and a sample of each array."""
    arrays = {name: array for name, array in _vectors(episode, kind).items() if len(array)}
    return json.dumps({name: _summary(np.asarray(array, np.float64)) for name, array in arrays.items()})


def merged(episodes: Iterable[str]) -> Statistics:
    """The statistics of all these episodes together (Chan et al., 1979)."""
    by_name: dict[str, list[dict[str, list[float]]]] = {}
    for text in episodes:
        for name, summary in json.loads(text).items():
            by_name.setdefault(name, []).append(summary)
    return {name: _of_all(summaries) for name, summaries in by_name.items()}


def _vectors(episode: Episode, kind: PoseKind | None) -> dict[str, Array]:
    """The arrays that statistics are kept of."""
    statistics: dict[str, Array] = {}
    if episode.actions.dtype.kind == "f":
        statistics["actions"] = episode.actions[1:]
    if episode.pose is not None and kind is not None:
        width = {"planar": 2, "place": episode.pose.shape[1], "se3": 3}[kind]
        place = episode.pose[:, :width].astype(np.float64)
        statistics |= {"pose": episode.pose, DISTANCE: np.linalg.norm(place - place[0], axis=1)[:, None]}
    for name, array in episode.labels.items():
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] <= COLUMNS and np.isfinite(array).all():
            statistics[LABEL + name] = array
    return statistics


def _summary(array: NDArray[np.float64]) -> dict[str, list[float] | list[list[float]]]:
    chosen = np.unique(np.linspace(0, len(array) - 1, SAMPLES).round().astype(int))
    mean = array.mean(0)
    return {
        "count": [float(len(array))],
        "mean": mean.tolist(),
        "squares": np.square(array - mean).sum(0).tolist(),
        "least": array.min(0).tolist(),
        "largest": array.max(0).tolist(),
        "sample": array[chosen].astype(np.float32).tolist(),
    }


def _of_all(summaries: list[dict[str, list[float]]]) -> ColumnStatistics:
    counts, means, squares, least, largest = (
        np.array([summary[part] for summary in summaries]) for part in ("count", "mean", "squares", "least", "largest")
    )
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    between = (counts * np.square(means - mean)).sum(0)
    sample = np.concatenate([np.array(summary["sample"]) for summary in summaries])
    low, median, high = np.quantile(sample, [LOW, 0.5, HIGH], axis=0)
    columns = {
        "mean": mean,
        "std": np.sqrt((squares.sum(0) + between) / total),
        "least": least.min(0),
        "low": low,
        "median": median,
        "high": high,
        "largest": largest.max(0),
    }
    return ColumnStatistics(frames=int(total), **{name: tuple(values.tolist()) for name, values in columns.items()})


def pooled(parts: Sequence[Statistics | None]) -> Statistics | None:
    """Of several datasets together: exact but for the quantiles, of which the outermost are kept and medians averaged.

    Only what all of them have, in as many columns; None where one has no statistics.
    """
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    shared = [name for name in known[0] if len({len(part[name].mean) if name in part else 0 for part in known}) == 1]
    return {name: _pooled([part[name] for part in known]) for name in shared}


def _pooled(parts: Sequence[ColumnStatistics]) -> ColumnStatistics:
    counts = np.array([[part.frames] for part in parts], np.float64)
    columns = {name: np.array([getattr(part, name) for part in parts]) for name in ColumnStatistics.model_fields}
    mean, median = ((counts * columns[name]).sum(0) / counts.sum() for name in ("mean", "median"))
    variance = (counts * (np.square(columns["std"]) + np.square(columns["mean"] - mean))).sum(0) / counts.sum()
    statistics = {"mean": mean, "median": median, "std": np.sqrt(variance)}
    statistics |= {name: columns[name].min(0) for name in ("least", "low")}
    statistics |= {name: columns[name].max(0) for name in ("high", "largest")}
    return ColumnStatistics(frames=int(counts.sum()), **{name: tuple(row.tolist()) for name, row in statistics.items()})


def standard(statistics: ColumnStatistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale of each column that give mean 0 and deviation 1; a column that never changed keeps scale 1."""
    return statistics.mean, _scales(statistics.std, statistics.mean)


def between_quantiles(statistics: ColumnStatistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale of each column that put its quantiles LOW and HIGH at -1 and 1."""
    middle = tuple((low + high) / 2 for low, high in zip(statistics.low, statistics.high, strict=True))
    half = tuple((high - low) / 2 for low, high in zip(statistics.low, statistics.high, strict=True))
    return middle, _scales(half, middle)


def _scales(spread: tuple[float, ...], around: tuple[float, ...]) -> tuple[float, ...]:
    """Spreads as scales: what is no more than the rounding of float32 is none."""
    none = 1e-6
    return tuple(
        s if math.isfinite(s) and s > none * max(abs(a), 1e-30) else 1.0 for s, a in zip(spread, around, strict=True)
    )
