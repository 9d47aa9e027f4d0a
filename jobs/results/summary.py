"""Scores as means with their spread over episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from longtake.errors import UserError, unknown
from longtake.storage.store import Store
from longtake.tables.scores import SUMMARY_BY

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    Plot = Callable[[pd.DataFrame, Store], Figure]


SPREAD = ("mean", "se", "ci95", "low", "high", "episodes")


APART = ("stratum", "partial")
"""What also keeps scores apart, where some row says it."""


def summary(scores: pd.DataFrame, by: Sequence[str] = SUMMARY_BY) -> pd.DataFrame:
    """Means over episodes by `by`, protocol and metric: mean, se (standard error), ci95 (half of the 95 % interval of
    Student's t), low and high (95 % bootstrap), episodes; of a single value only the mean."""
    from longtake.evals.bootstrap import bootstrap_interval
    from longtake.tables.scores import per_episode, summarise

    apart = [name for name in APART if name in scores and scores[name].notna().any()]
    if "dataset" in scores and scores.dataset.nunique() > 1 and "dataset" not in by:
        apart = ["dataset", *apart]
    keys = list(dict.fromkeys([*by, *apart, "metric", "protocol"]))
    if scores.empty:
        return scores.reindex(columns=[*keys, *SPREAD])
    _require(scores, keys)
    by = [*by, *apart]
    means = summarise(scores, by=by)
    values = per_episode(scores, by=by).value.groupby(level=keys, dropna=False)
    ends = [bootstrap_interval(group.to_numpy(dtype=float)) for _, group in values]
    lows, highs = zip(*ends, strict=True)
    half = means.high - means["mean"]
    return means.assign(se=values.sem().to_numpy(), ci95=half, low=lows, high=highs)[[*keys, *SPREAD]]


def means(rows: pd.DataFrame, by: Sequence[str], sums: Sequence[str] = ()) -> pd.DataFrame:
    """Means of the numeric columns by `by`, how many rows each is of, and `sum_NAME` of the columns `sums`."""
    if rows.empty:
        return rows.reindex(columns=[*by, "rows"])
    _require(rows, by)
    groups = rows.groupby(list(by), dropna=False)
    numeric = [name for name in rows.select_dtypes("number").columns if name not in by]
    averages = groups[numeric].mean().join(groups.size().rename("rows"))
    _require(rows, sums)
    return averages.join(groups[list(sums)].sum().add_prefix("sum_")).reset_index() if sums else averages.reset_index()


def at_multiples(steps: pd.DataFrame, every: int) -> pd.DataFrame:
    """The rows of `steps` whose step is a multiple of `every`, with what was last measured held-out by then."""
    import pandas as pd

    if steps.empty:
        return steps
    ordered = steps.sort_values(["run", "step"], kind="stable")
    held_out = [name for name in ordered if str(name).startswith(("val_", "state_"))]
    filled = ordered.groupby("run")[held_out].ffill() if held_out else pd.DataFrame(index=ordered.index)
    return ordered.assign(**{str(name): filled[name] for name in held_out})[ordered.step % every == 0]


_ELSEWHERE = {"model": "there is no column 'model': models, their controls and floors stand in the column system"}


def _require(frame: pd.DataFrame, names: Sequence[str]) -> None:
    columns = [str(name) for name in frame.columns]
    missing = [_ELSEWHERE.get(name) or unknown("column", name, columns) for name in names if name not in columns]
    if missing and len(frame):
        raise UserError(*missing)
