"""Means with intervals over episodes, and paired differences: is one system better than another?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


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


def summarise(scores: pd.DataFrame, beyond: int = 0) -> pd.DataFrame:
    """Mean over episodes of each episode's mean, with its two-sided 95 % interval (Student's t).

    Args:
        scores: rows of the `scores` table.
        beyond: only frames at distances above this one.

    Returns:
        One row per task, protocol, run, checkpoint, system and metric: `mean`, `low`, `high`, `episodes`. Protocols are
        never mixed: each has its own rows.
    """
    from scipy.stats import t

    keys = ["task", "protocol", "run", "checkpoint", "system", "metric"]
    per_episode = scores[scores.distance > beyond].groupby([*keys, "episode"], observed=True).value.mean()
    found = per_episode.groupby(keys, observed=True).agg(["mean", "sem", "count"]).reset_index()
    half = found["sem"] * t.ppf(0.975, (found["count"] - 1).clip(lower=1))
    found["low"], found["high"] = found["mean"] - half, found["mean"] + half
    return found.rename(columns={"count": "episodes"}).drop(columns="sem")
