"""`longtake du`: how many bytes each dataset, run, sweep and table of a store takes, the largest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.jobs.display.show import show, store_to_show
from longtake.jobs.display.table_formats import size
from longtake.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

KINDS = {"datasets": "dataset", "runs": "run", "sweeps": "sweep", "tables": "table"}
"""Folders whose subfolders are told apart."""


def main(store: str, format: str | None = None, out: str | None = None) -> None:
    """The command."""
    place = store_to_show(store, format, out)
    frame = usage(place)
    show(frame, format, out)
    if format is None and out is None:
        print(f"{size(int(frame['bytes'].sum()))} in all")


def usage(store: Store) -> pd.DataFrame:
    """A line for each thing that takes bytes: kind, name, what it is called (of runs), bytes, size, files."""
    import pandas as pd

    totals: dict[tuple[str, str], list[int]] = {}
    for name, bytes_ in store.sizes("").items():
        folder, _, rest = name.partition("/")
        inner = rest.partition("/")[0]
        key = (KINDS[folder], inner) if folder in KINDS and "/" in rest else (folder, "")
        totals.setdefault(key, []).append(bytes_)
    runs = store.table("runs")
    called = dict(zip(runs.run, runs.name, strict=True)) if len(runs) else {}
    lines = [
        {
            "kind": kind,
            "name": name,
            "called": called.get(name, ""),
            "size": size(sum(sizes)),
            "bytes": sum(sizes),
            "files": len(sizes),
        }
        for (kind, name), sizes in totals.items()
    ]
    columns = ["kind", "name", "called", "size", "bytes", "files"]
    return pd.DataFrame(lines, columns=columns).sort_values(["bytes", "name"], ascending=[False, True])
