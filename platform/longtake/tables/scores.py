"""Means of scores with intervals over episodes, and paired differences: is one system better than another?

Scores of different protocols answer different questions and are never compared: whoever tries is told in which
fields of their definitions (`protocols/HASH.json` in the store) they differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.errors import Damaged, UserError, unknown
from longtake.tables import table as tables
from longtake.tables.schema import NO_RUN

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

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
        `by`, metric, protocol, then `mean`, `low`, `high` (missing for a single episode), `episodes`. A value that
        is of many clips at once, such as fvd, has no interval, and these clips are its episodes.
    """
    from scipy.stats import t

    keys = list(dict.fromkeys([*by, "metric", "protocol"]))
    groups = per_episode(scores, beyond, by).groupby(level=keys, dropna=False)
    means = groups.value.agg(["mean", "sem", "count"]).assign(episodes=groups.clips.sum().astype(int)).reset_index()
    freedom = means["count"].to_numpy() - 1
    half = np.where(freedom > 0, means["sem"].to_numpy(dtype=float) * t.ppf(0.975, np.maximum(freedom, 1)), np.nan)
    means = means.assign(low=means["mean"] - half, high=means["mean"] + half)
    return means[[*keys, "mean", "low", "high", "episodes"]]


def per_episode(scores: pd.DataFrame, beyond: int = 0, by: Sequence[str] = SUMMARY_BY) -> pd.DataFrame:
    """Each episode's mean `value`, and the `clips` it is of, indexed by `by`, metric, protocol and episode."""
    keys = list(dict.fromkeys([*by, "metric", "protocol"]))
    # An episode number means something within its dataset only.
    episode = [name for name in ("dataset", "episode") if name in scores and name not in keys]
    rows = scores[scores.distance > beyond] if beyond else scores
    clips = rows.clips.astype("float").fillna(1) if "clips" in rows else 1
    return (
        rows.assign(clips=clips)
        .groupby([*keys, *episode], dropna=False, observed=True)
        .agg(value=("value", "mean"), clips=("clips", "max"))
    )


# --- straight from a store -----------------------------------------------------------------------------------


def latest(store: Store, where: str | None = None) -> pd.DataFrame:
    """The scores of each run's newest checkpoint, and of the floors: rows that may stand side by side.

    Where a task was scored under several protocols (or on several datasets), they are those of the one that every run
    of the task shares.

    Args:
        where: rows to choose from, as a pandas query.

    Raises:
        UserError: no protocol of a task, or more than one, is shared by its runs; the fields in which they differ are
            named.
    """
    return _newest(_alike(store, tables.read(store, "scores", where)))


def best(store: Store, metric: str = "psnr", where: str | None = None, beyond: int = 0) -> pd.DataFrame:
    """Of each task the checkpoint with the best mean over episodes, by the metric's own direction: as `summarise`.

    Models take part, with their memory: no floors, no oracle, no controls such as MODEL/wiped. Of several protocols the
    shared one counts, as in `latest`.

    Args:
        where: rows to choose from, as a pandas query.
        beyond: only frames at distances above this one.

    Raises:
        UserError: no protocol that all share, nothing scored with this metric, or rows that do not say which way is
            better.
    """
    rows = _alike(store, _of_metric(tables.read(store, "scores", where), metric, store))
    models = rows[_is_model(rows)]
    means = summarise(models, beyond=beyond)
    ranked = means.sort_values("mean", key=_direction(rows, metric), kind="stable")
    return ranked.drop_duplicates("task").sort_values("task").reset_index(drop=True)


def compare(
    store: Store, a: str, b: str, metric: str = "psnr", where: str | None = None, beyond: int = 0
) -> pd.DataFrame:
    """Two systems or runs, paired over the episodes that both were scored on, at their newest checkpoints.

    Args:
        a, b: a run's id (its model with its memory), or a system, such as block_ssm/wiped or copy_last.

    Returns:
        Per task and protocol that both were scored under: task, dataset, metric, protocol, the means `a` and `b`,
        `difference` (a - b) with `low` and `high` (95 %), episodes. Protocols are never mixed.

    Raises:
        UserError: no such run or system, one that stands for several runs, no shared protocol, too few episodes.
    """
    import pandas as pd

    rows = _of_metric(tables.read(store, "scores", where), metric, store)
    sides = {"a": _side(rows, a), "b": _side(rows, b)}
    both = pd.concat([side.assign(system=name) for name, side in sides.items()])
    if not set(sides["a"].task) & set(sides["b"].task):
        raise UserError(f"{a} and {b} were never scored on the same task")
    shared = set(sides["a"].protocol) & set(sides["b"].protocol)
    if not shared:
        require_alike(store, both[both.task.isin(set(sides["a"].task) & set(sides["b"].task))])
    lines = []
    for (task, protocol), group in both[both.protocol.isin(shared)].groupby(["task", "protocol"], observed=True):
        try:
            gap = paired_difference(group, "a", "b", metric, beyond)
        except ValueError as error:
            raise UserError(f"{task}: {error}".replace("a against b", f"{a} against {b}")) from error
        means = summarise(group, beyond, by=("system",)).set_index("system")["mean"]
        where_from = {"dataset": group.dataset.iloc[0]} if "dataset" in group else {}
        label = {"task": task, **where_from, "metric": metric, "protocol": protocol, "a": means["a"], "b": means["b"]}
        lines.append(label | {"difference": gap.mean, "low": gap.low, "high": gap.high, "episodes": gap.episodes})
    return pd.DataFrame(lines)


def _is_model(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of a model with its memory: no floor, no oracle, no control."""
    return (rows.run != NO_RUN) & ~rows.system.str.contains("/")


def _alike(store: Store, rows: pd.DataFrame) -> pd.DataFrame:
    """Of each task the rows of its one protocol, or of the one among several that all of its runs were scored under.

    Raises:
        UserError: as `require_alike`, for the tasks without exactly one such.
    """
    import pandas as pd

    kept = []
    for _, group in rows.groupby("task", observed=True):
        models = group[_is_model(group)]
        per_run = [set(mine) for _, mine in models.groupby("run", observed=True).protocol]
        shared = set.intersection(*per_run) if per_run else set()
        kept.append(group[group.protocol.isin(shared)] if len(shared) == 1 else group)
    chosen = pd.concat(kept).sort_index() if kept else rows
    require_alike(store, chosen)
    return chosen


def require_alike(store: Store, scores: pd.DataFrame) -> None:
    """Raise UserError, a line per task that was scored under several protocols, with the fields that differ."""
    problems = []
    for task, group in scores.groupby("task", observed=True):
        protocols = sorted(group.protocol.astype(str).unique())
        if len(protocols) > 1:
            names = sorted(group.dataset.astype(str).unique()) if "dataset" in group else []
            one = f"dataset == '{names[0]}'" if len(names) == len(protocols) else f"protocol == '{protocols[0]}'"
            problems.append(
                f"{task} was scored under {len(protocols)} protocols that cannot be compared: "
                f'{"; ".join(differing_fields(store, protocols))}; choose one, such as where="{one}"'
            )
    if problems:
        raise UserError(*problems)


def differing_fields(store: Store, protocols: Sequence[str]) -> list[str]:
    """`field: value (HASH), value (HASH)` of every field that is not the same in all definitions."""
    texts = store.read_many([f"protocols/{protocol}.json" for protocol in protocols])
    described = {
        hash_: definition(text, hash_)
        for hash_, text in zip(protocols, texts.values(), strict=True)
        if text is not None
    }
    flat = {hash_: dict(_flat(definition)) for hash_, definition in described.items()}
    lines = []
    for name in dict.fromkeys(name for fields in flat.values() for name in fields):
        values = {hash_: fields.get(name) for hash_, fields in flat.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            lines.append(f"{name}: {', '.join(f'{value} ({hash_})' for hash_, value in values.items())}")
    unknown_ones = [hash_ for hash_ in protocols if hash_ not in described]
    return lines + [f"{hash_}: its definition is not in the store" for hash_ in unknown_ones]


def definition(data: bytes, protocol: str) -> dict[str, Any]:
    """What a file `protocols/HASH.json` says. Raises Damaged if that is not what its hash is of."""
    try:
        content = json.loads(data)
        whole = isinstance(content, dict) and _hash(content) == protocol
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(
            f"protocols/{protocol}.json: damaged, it is not the definition that was written: bring it back from a "
            "copy, or remove it and evaluate again"
        )
    fields: dict[str, Any] = content
    return fields


def _hash(definition: Mapping[str, Any]) -> str:
    """As `Protocol.hash`."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:12]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _of_metric(rows: pd.DataFrame, metric: str, store: Store) -> pd.DataFrame:
    metrics = sorted(rows.metric.astype(str).unique()) if len(rows) else []
    if metric not in metrics:
        raise UserError(f"{unknown('metric', metric, metrics)} (in the scores of {store.uri})")
    return rows[rows.metric == metric]


def _direction(rows: pd.DataFrame, metric: str) -> Callable[[pd.Series], pd.Series]:
    """What turns values of a metric into an order with the best first."""
    ways: dict[str, Callable[[pd.Series], pd.Series]] = {"higher": lambda x: -x, "lower": lambda x: x, "zero": abs}
    directions = set(rows.better.dropna()) if "better" in rows else set()
    if len(directions) != 1 or not directions <= set(ways):
        raise UserError(f"the scores of {metric} do not say which way is better: evaluate again")
    return ways[directions.pop()]


def _newest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each run, task, protocol and system the rows of the newest checkpoint."""
    newest = rows.groupby(["run", "task", "protocol", "system"], observed=True).checkpoint.transform("max")
    return rows[rows.checkpoint == newest].reset_index(drop=True)


def _side(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows that a name stands for: of a run its model with its memory, or of a system."""
    of_run = rows[(rows.run == name) & (name != NO_RUN) & ~rows.system.str.contains("/")]
    chosen = of_run if len(of_run) else rows[rows.system == name]
    if not len(chosen):
        names = {*rows.run[rows.run != NO_RUN].astype(str), *rows.system.astype(str)}
        raise UserError(unknown("run or system", name, names))
    runs = sorted(chosen.run.astype(str).unique())
    if len(runs) > 1:
        raise UserError(f"{name} stands for {len(runs)} runs: {', '.join(runs)}; name one of them, or choose by where")
    return _newest(chosen)
