"""`longtake runs`: what was run in a store and how it fares; a run whose driver was killed is `lost`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.results import check_output, say_empty, show
from longtake.store import open_store

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("run", "kind", "name", "status", "started", "minutes", "sessions", "reason")


def main(store: str, *, where: str | None = None, format: str | None = None, out: str | None = None) -> None:
    """The command."""
    check_output(format, out)
    place = open_store(store)
    place.require_exists()
    runs = place.table("runs", where=where)
    if runs.empty:
        say_empty("runs", place, where)
    show(overview(runs), format, out)


def overview(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per run, oldest first; `minutes` from its first start to its last sign of life."""
    import pandas as pd

    if runs.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    minutes = (runs["event_time"] - runs["started"]).dt.total_seconds() / 60
    return runs.assign(minutes=minutes.round(1)).reindex(columns=list(COLUMNS)).sort_values("run")
