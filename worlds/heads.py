"""Reward and end of a learned world, read off its pictures by small heads fitted to what a dataset recorded.

A head is a ridge regression on two pictures, the last and the one before, made small (8 x 8): closed form, the same for
the same data, and fitted in seconds. How well it does on episodes that it was not fitted to is told with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.episode import LABEL
from longtake.errors import UserError, unknown
from longtake.sources.resize import shrink

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

SIDE = 8
RIDGE = 1e-2
"""Of the squared weights, beside the mean squared error of features between 0 and 1."""
EPISODES = 64
"""To fit to, and at most half as many to judge by."""


@dataclass(frozen=True)
class Head:
    """label: what it tells; r2: share of the variance that it explains in episodes it was not fitted to."""

    label: str
    weights: NDArray[np.float64]
    r2: float

    def of(self, before: NDArray[np.uint8], frame: NDArray[np.uint8]) -> float:
        """The value at a picture (H, W, 3) that follows another."""
        return float(_features(np.stack([before, frame]))[1] @ self.weights)


def fit(dataset: Dataset, label: str) -> Head:
    """Fit a head to a label of a dataset, one number or truth value a frame.

    Raises:
        UserError: the dataset has no such label, or its frames are latents.
    """
    listed = [spec.name.removeprefix(LABEL) for spec in dataset.manifest.arrays if spec.name.startswith(LABEL)]
    if label not in listed:
        raise UserError(unknown(f"label of dataset {dataset.name}", label, listed))
    if dataset.manifest.latents is not None:
        raise UserError(f"dataset {dataset.name}: a head reads pictures; name the dataset that was encoded")
    inputs, values = _rows(dataset, label, dataset.episodes("train").episode.head(EPISODES))
    gram = inputs.T @ inputs / len(inputs) + RIDGE * np.diag([*np.ones(inputs.shape[1] - 1), 0.0])
    weights = np.asarray(np.linalg.solve(gram, inputs.T @ values / len(inputs)), np.float64)
    held, truth = _rows(dataset, label, dataset.episodes("val").episode.head(EPISODES // 2))
    left = np.mean((truth - held @ weights) ** 2)
    return Head(label, weights, float(1 - left / truth.var()) if truth.var() else float("nan"))


def _rows(dataset: Dataset, label: str, episodes: Iterable[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    read = [dataset.read(int(episode), labels=True) for episode in episodes]
    inputs = np.concatenate([_features(episode.frames)[1:] for episode in read])
    return inputs, np.concatenate([episode.labels[label][1:] for episode in read]).astype(np.float64)


def _features(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of every picture (T, H, W, 3) its own and that before it, small, and a one: (T, 2·8·8·3 + 1)."""
    side = (min(SIDE, frames.shape[1]), min(SIDE, frames.shape[2]))
    small = np.stack([shrink(frame, side) for frame in frames]).reshape(len(frames), -1) / 255
    return np.concatenate([small, np.roll(small, 1, 0), np.ones((len(frames), 1))], 1)
