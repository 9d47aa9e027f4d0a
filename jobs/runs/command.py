"""`longtake runs`: what was run in a store and how it fares; a run whose driver was killed is `lost`.

With a run: everything that is known of that one, down to its config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.jobs.display.show import say_empty, show, store_to_show
from longtake.jobs.results.summary import summary
from longtake.storage.store import Store
from longtake.tables import table as tables
from longtake.tables.find import find_run

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("run", "kind", "name", "status", "started", "minutes", "sessions", "reason")
SAID = ("tags", "note")
"""Shown where some run has them."""
LONG = ("config", "versions", "pid", "event_time")
"""Not in the list of a run's fields: the config is printed below it, the others are for programs."""


def main(
    store: str,
    run: str | None = None,
    *,
    where: str | None = None,
    tag: str | None = None,
    format: str | None = None,
    out: str | None = None,
) -> None:
    """The command."""
    place = store_to_show(store, format, out)
    if run is not None:
        if where or tag:
            raise UserError("--where and --tag choose among runs: leave out the run, or those")
        return show_one(place, run, format, out)
    runs = place.table("runs", where=where)
    if tag is not None:
        runs = runs[[tag in str(tags).split() for tags in runs["tags"]]] if "tags" in runs else runs[:0]
    if runs.empty:
        say_empty("runs", place, where or (f"tag {tag}" if tag else None))
    show(overview(runs), format, out)


def overview(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per run, oldest first; `minutes` from its first start to its last sign of life."""
    import pandas as pd

    if runs.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    said = [name for name in SAID if name in runs and (runs[name].fillna("") != "").any()]
    return _with_minutes(runs).reindex(columns=[*COLUMNS, *said]).sort_values("run")


def show_one(store: Store, run: str, format: str | None = None, out: str | None = None) -> None:
    """A run's fields, its last step, its scores and its config; as a row of the table for any other format.

    Raises UserError for an unknown run.
    """
    run = str(find_run(store, run, kinds=())["run"])
    rows = tables.read(store, "runs", where=f"run == {run!r}")
    if format not in (None, "table") or out:
        return show(rows, format, out)
    show(fields(_with_minutes(rows), last_step(store, run)))
    scores = store.table("scores", where=f"run == {run!r}")
    if len(scores):
        print("\nscores")
        show(summary(scores, ["task", "system", "checkpoint"]))
    if "config" in rows:
        print(f"\nconfig\n{rows['config'].iloc[0]}", end="")


def fields(rows: pd.DataFrame, step: dict[str, object]) -> pd.DataFrame:
    """One line per field of a run that has a value, those of the overview first."""
    import pandas as pd

    row = rows.iloc[0]
    names = [*(name for name in COLUMNS if name in row.index), *(name for name in row.index if name not in COLUMNS)]
    known = {name: row[name] for name in names if name not in LONG and not pd.isna(row[name]) and row[name] != ""}
    return pd.DataFrame([{"field": name, "value": value} for name, value in {**known, **step}.items()], dtype=object)


def last_step(store: Store, run: str) -> dict[str, object]:
    """Number and loss of the newest row of `steps`; nothing without one."""
    steps = store.table("steps", where=f"run == {run!r}")
    if steps.empty:
        return {}
    last = steps.sort_values("step").to_dict("records")[-1]
    return {"last step": last["step"], **({"loss": last["loss"]} if "loss" in last else {})}


def _with_minutes(runs: pd.DataFrame) -> pd.DataFrame:
    minutes = (runs["event_time"] - runs["started"]).dt.total_seconds() / 60
    return runs.assign(minutes=minutes.round(1))
