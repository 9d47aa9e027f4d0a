"""What people say of a run after it began: another name, tags, a note, and that its files were removed.

It lies in a table of its own, `notes`, because a run that goes on rewrites its row with every beat. Who reads `runs`
gets it laid over the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.tables import schema

if TYPE_CHECKING:
    import pandas as pd

REMOVED = "removed"
"""The status of a run whose files are gone."""


def laid_over(runs: pd.DataFrame, notes: pd.DataFrame) -> pd.DataFrame:
    """Rows of `runs` with tags and notes as columns, the names that they were given later, and what is removed."""
    if notes.empty or runs.empty or "run" not in runs:
        return runs
    names = ["name", "tags", "note", "removed"]
    said = schema.with_columns("notes", notes, names).set_index("run")[names].reindex(runs["run"])
    said.index = runs.index
    rows = runs.assign(tags=said["tags"], note=said["note"])
    if "name" in rows:
        rows["name"] = rows["name"].mask(said["name"].notna(), said["name"])
    gone = said["removed"].notna()
    if gone.any():
        rows = schema.with_columns("runs", rows, ("status", "reason"))
        rows.loc[gone, "status"] = REMOVED
        rows.loc[gone, "reason"] = "its files were removed on " + said["removed"][gone].dt.strftime("%Y-%m-%d")
    return rows
