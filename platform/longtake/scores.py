"""Means with intervals over episodes, and paired differences: is one system better than another?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_BY = ("task", "system", "run", "checkpoint")
"""What makes a line of a summary of scores, beside protocol and metric."""


@dataclass(frozen=True)
class Difference:
    """Mean of (a - b) over episodes, with a two-sided 95 % interval (Student's t), and the number of episodes."""

    mean: float
    low: float
    high: float
    episodes: int


def paired_difference(scores: pd.DataFrame, a: str, b: str, metric: str = "psnr", beyond: int = 0) -> Difference:
    """Compare two systems on the episodes that both were scored on, at distances above `beyond`.

    Raises:
        ValueError: the rows mix protocols, or fewer than two episodes are shared.
    """
    from scipy.stats import ttest_1samp

    rows = scores[(scores.metric == metric) & (scores.distance > beyond) & scores.system.isin([a, b])]
    protocols = sorted(rows.protocol.unique())
    if len(protocols) > 1:
        raise ValueError(f"protocol: {a} and {b} were scored under different protocols: {', '.join(protocols)}")
    per_episode = rows.groupby(["episode", "system"]).value.mean().unstack("system").dropna()
    if len(per_episode) < 2 or {a, b} - set(per_episode.columns):
        raise ValueError(f"{a} against {b}: fewer than two episodes scored for both")
    gaps = (per_episode[a] - per_episode[b]).to_numpy(dtype=np.float64)
    if np.ptp(gaps) == 0:
        return Difference(float(gaps[0]), float(gaps[0]), float(gaps[0]), len(gaps))
    interval = ttest_1samp(gaps, 0.0).confidence_interval(0.95)
    return Difference(float(gaps.mean()), float(interval.low), float(interval.high), len(gaps))


def summarise(scores: pd.DataFrame, beyond: int = 0, by: Sequence[str] = SUMMARY_BY) -> pd.DataFrame:
    """Mean over episodes of each episode's mean, with its two-sided 95 % interval (Student's t).

    The frames of an episode are averaged first: they are not independent, episodes are.

    Args:
        scores: rows of the `scores` table.
        beyond: only frames at distances above this one.
        by: what makes a row of the result, beside protocol and metric: those are never mixed.

    Returns:
        `by`, metric, protocol, then `mean`, `low`, `high` (missing for a single episode), `episodes`.
    """
    from scipy.stats import t

    keys = list(dict.fromkeys([*by, "metric", "protocol"]))
    # An episode number means something within its dataset only.
    episode = [name for name in ("dataset", "episode") if name in scores and name not in keys]
    rows = scores[scores.distance > beyond] if beyond else scores
    per_episode = rows.groupby([*keys, *episode], dropna=False, observed=True).value.mean()
    found = per_episode.groupby(level=keys, dropna=False).agg(["mean", "sem", "count"]).reset_index()
    freedom = found["count"].to_numpy() - 1
    half = np.where(freedom > 0, found["sem"].to_numpy(dtype=float) * t.ppf(0.975, np.maximum(freedom, 1)), np.nan)
    found = found.assign(low=found["mean"] - half, high=found["mean"] + half)
    return found.rename(columns={"count": "episodes"})[[*keys, "mean", "low", "high", "episodes"]]
