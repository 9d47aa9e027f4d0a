"""Bootstrap over episodes: how far a mean would move if other episodes had been drawn.

Episodes are what is independent; frames of one are not. The draws are seeded, so that the same rows always say the
same. Letters: n episodes, B resamples.
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
