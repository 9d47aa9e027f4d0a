"""Scores as papers print them: a line per system, a column per metric, the run and the frames it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longtake.evals.registry import METRICS
from longtake.jobs.results.summary import APART, summary
from longtake.tables.schema import NO_RUN
from longtake.tables.scores import SUMMARY_BY

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store


def side_by_side(store: Store, scores: pd.DataFrame, by: Sequence[str] = SUMMARY_BY) -> pd.DataFrame:
    """Means of each metric with half of their 95 % interval over episodes, as text, the best first.

    Beside `by`: a column per metric, episodes, protocol, and `frames`, trained on by the run, where there is one.
    """
    means = summary(scores, by)
    keys = [*by, *(name for name in ("dataset", *APART) if name in means and name not in by), "protocol"]
    metrics = [name for name in METRICS if (means.metric == name).any()]
    means = means.assign(told=[_told(*line) for line in means[["metric", "mean", "ci95"]].itertuples(index=False)])
    groups = means.set_index([*keys, "metric"]).told.unstack("metric")[metrics]
    counts = means.groupby(keys, dropna=False, observed=True).episodes.max()
    lines = groups.assign(episodes=counts).reset_index().rename_axis(columns=None)
    if "run" in by:
        lines = lines.merge(_trained(store, lines.run), on="run", how="left")
    return _best_first(lines, means, keys, metrics[0])[[*by, *metrics, *(c for c in lines if c not in (*by, *metrics))]]


def _told(metric: str, mean: float, half: float) -> str:
    import pandas as pd

    digits = METRICS[metric].digits
    return f"{mean:.{digits}f}" + ("" if pd.isna(half) else f" ± {half:.{digits}f}")


def _trained(store: Store, runs: pd.Series[str]) -> pd.DataFrame:
    """The frames that each run was trained on."""
    trainings = store.table("runs", where=f"run in {sorted(set(runs) - {NO_RUN})!r}")
    return trainings.reindex(columns=["run", "frames"]).astype({"frames": "Int64"})


def _best_first(lines: pd.DataFrame, means: pd.DataFrame, keys: Sequence[str], metric: str) -> pd.DataFrame:
    """Task by task, by the first metric."""
    goodness = means[means.metric == metric].set_index(list(keys))["mean"].map(METRICS[metric].goodness)
    ordered = lines.join(goodness.rename("goodness"), on=list(keys)).sort_values("goodness", ascending=False)
    if "task" in keys:
        ordered = ordered.sort_values("task", kind="stable")
    return ordered.drop(columns="goodness").reset_index(drop=True)
