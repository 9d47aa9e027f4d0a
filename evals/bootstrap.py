"""Bootstrap over episodes: how far a mean would move if other episodes had been drawn.

Episodes are what is independent; frames of one are not. Where a model was trained several times, seeds are drawn first
and then episodes. The draws are seeded, so that the same rows always say the same. Letters: n episodes, s trainings,
B resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
TAIL = 0.025  # of a two-sided 95 % interval
Numbers = NDArray[np.float64]


def resampled_means(values: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> Numbers:
    """Means (B, ...) of values (n, ...) over n episodes drawn with replacement, the same ones for the same n."""
    count = len(values)
    shares = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples) / count
    return np.asarray(np.tensordot(shares, values, 1))


def bootstrap_interval(values: Numbers, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of (n,) values; missing (nan) for a single one."""
    if len(values) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(resampled_means(values, resamples), [TAIL, 1 - TAIL])
    return float(low), float(high)


def seed_and_episode_means(values: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> Numbers:
    """Means (B,) of values (s, n): s trainings from other seeds drawn anew, then n episodes, the same for all seeds.

    Two systems that were asked the same episodes are compared draw by draw: the episodes drawn are the same for the
    same n, the trainings drawn are others for another `seed`. Of a single training it says nothing about seeds.
    """
    trainings, episodes = values.shape
    drawn = np.random.default_rng([seed, 1]).multinomial(trainings, np.full(trainings, 1 / trainings), resamples)
    shares = np.random.default_rng(0).multinomial(episodes, np.full(episodes, 1 / episodes), resamples)
    return np.asarray(((drawn / trainings) @ values * (shares / episodes)).sum(1))


def interval(draws: Numbers, comparisons: int = 1) -> tuple[float, float]:
    """The percentile interval of draws (B,) that holds for so many comparisons at once, at 95 % (Bonferroni)."""
    low, high = np.quantile(draws, [TAIL / comparisons, 1 - TAIL / comparisons])
    return float(low), float(high)
