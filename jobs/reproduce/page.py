"""The page of a reproduction: every row beside what was published, differences with intervals, and the commands.

Intervals are over trainings from other seeds and then over episodes; those of differences hold for all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.bootstrap import interval, seed_and_episode_means
from longtake.evals.registry import METRICS
from longtake.models.analysis.cost import Costs
from longtake.tables.schema import NO_RUN

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
    from longtake.jobs.reproduce.config import Table
    from longtake.storage.store import Store

    Values = NDArray[np.float64]

RESAMPLES = 10_000
"""Enough for the tails that many comparisons at once ask for."""


def write(table: Table, store: Store, subjects: Sequence[EvaluatedCheckpoint]) -> str:
    """Put the page into the store's reports, print it, and return where it lies."""
    text = render(table, _scores(table, store, subjects), [subject.run for subject in subjects])
    where = f"reports/reproduce-{table.name}.md"
    store.write_bytes(where, text.encode())
    print(text)
    return store.path(where)


def _scores(table: Table, store: Store, subjects: Sequence[EvaluatedCheckpoint]) -> pd.DataFrame:
    """Rows of these checkpoints and of the floors, under what the table asks."""
    from longtake.jobs.evaluate.grid import plan_cells

    protocols = {cell.payload.protocol.hash for cell in plan_cells(table.evaluation, store, subjects)}
    rows = store.table("scores")
    return rows[rows.protocol.isin(protocols) & rows.run.isin([*(subject.run for subject in subjects), NO_RUN])]


def render(table: Table, scores: pd.DataFrame, runs: Sequence[str]) -> str:
    """The page as Markdown."""
    config, (ours, *_) = table.config, table.trainings
    count = len(config.seeds)
    seeds = f"{count} seeds" if count > 1 else "ONE seed: intervals say nothing about seeds"
    lines = [f"# {table.name}: {config.about}", "", f"{seeds}; {len(scores.episode.unique())} episodes.", ""]
    for (task, metric), rows in scores.groupby(["task", "metric"], observed=True):
        for stratum, part in rows.assign(stratum=_strata(rows)).groupby("stratum", observed=True):
            kind = f", {stratum!s}" if stratum else ""
            lines += [f"## {task!s}{kind}: {metric!s}", ""]
            lines += [*_table(table, part, str(metric), ours if task == config.task else None), ""]
    return "\n".join([*lines, *_commands(table, runs)]) + "\n"


def _strata(rows: pd.DataFrame) -> pd.Series[str]:
    """What kind of frame each row is of, where the task tells kinds apart."""
    import pandas as pd

    return rows.stratum.fillna("") if "stratum" in rows else pd.Series("", rows.index)


def _table(table: Table, rows: pd.DataFrame, metric: str, ours: str | None) -> list[str]:
    """Systems, the best first, with the difference of `ours` to each where it is the task that is told of."""
    values = {str(system): _by_seed(part) for system, part in rows.groupby("system", observed=True)}
    goodness = METRICS[metric].goodness
    order = sorted(values, key=lambda system: -goodness(values[system].mean()))
    rivals = [system for system in order if system != ours] if ours in values else []
    of = f"published ({table.config.published})"
    lines = [f"| system | parameters | bytes carried | mean [95 %] | {of} | ours above it [95 %, all at once] |"]
    lines.append("|---|---:|---:|---|---:|---|")
    for number, system in enumerate(order):
        gap = _gap(values[str(ours)], values[system], number + 1, len(rivals)) if system in rivals else ""
        lines.append(f"| {system} | {_cost(table, system)} | {_mean(values[system], metric)} | "
                     f"{_published(table, system, metric)} | {gap} |")  # fmt: skip
    return [*lines, "", f"{len(rivals)} comparisons."] if rivals else lines


def _by_seed(rows: pd.DataFrame) -> Values:
    """Each episode's mean by training: (s, n)."""
    means = rows.groupby(["run", "episode"], observed=True).value.mean().unstack("episode")
    return means.to_numpy(dtype=np.float64)


def _mean(values: Values, metric: str) -> str:
    low, high = interval(seed_and_episode_means(values, RESAMPLES))
    digits = METRICS[metric].digits
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _gap(ours: Values, theirs: Values, number: int, comparisons: int) -> str:
    """Ours less theirs, over the same episodes; `number` gives theirs seeds of its own."""
    draws = seed_and_episode_means(ours, RESAMPLES) - seed_and_episode_means(theirs, RESAMPLES, seed=number)
    low, high = interval(draws, comparisons)
    return f"{ours.mean() - theirs.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def _cost(table: Table, system: str) -> str:
    trainings = table.trainings.get(system)
    if trainings is None:
        return "| "
    protocol = next(p for p in table.evaluation.protocols if p.task == table.config.task)
    costs = Costs(trainings[0].model)
    return f"{costs.parameters} | {costs.carried(protocol.context)['total']}"


def _published(table: Table, system: str, metric: str) -> str:
    rows: Mapping[str, Mapping[str, float]] = {row.name: dict(row.published) for row in table.config.rows}
    value = rows.get(system, {}).get(metric)
    return "" if value is None else f"{value:g}"


def _commands(table: Table, runs: Sequence[str]) -> list[str]:
    where = f"run in {[*runs, NO_RUN]!r}"
    return [
        "## Commands",
        "",
        "```",
        table.line,
        f'longtake results scores --where "{where}" --by task,system',
        "```",
    ]
