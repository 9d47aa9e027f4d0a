"""`longtake compare A B`: two runs or systems, paired over the episodes that both were scored on, with an interval."""

from __future__ import annotations

from typing import Any

from longtake.errors import UserError
from longtake.jobs.display.show import show, store_to_show
from longtake.storage.store import Store
from longtake.tables import scores
from longtake.tables.find import find_run
from longtake.tables.schema import NO_RUN


def main(
    a: str,
    b: str,
    store: str,
    *,
    metric: str = "psnr",
    beyond: int = 0,
    where: str | None = None,
    format: str | None = None,
    out: str | None = None,
) -> None:
    """The command: a line per task and protocol, and what it says in words."""
    place = store_to_show(store, format, out)
    sides = side(place, a), side(place, b)
    lines = scores.compare(place, *sides, metric=metric, where=where, beyond=beyond)
    show(lines, format, out)
    if format in (None, "table") and not out:
        for row in lines.to_dict("records"):
            print(sentence(a, b, {str(name): value for name, value in row.items()}, beyond))


def sentence(a: str, b: str, row: dict[str, Any], beyond: int) -> str:
    """A line of the comparison in words."""
    gap, low, high = (float(row[name]) for name in ("difference", "low", "high"))
    ahead = "the interval holds 0" if low <= 0 <= high else f"{a if gap > 0 else b} has more"
    frames = f" at distances above {beyond}" if beyond else ""
    return (
        f"{row['task']}: {a} - {b} = {gap:+.3g} {row['metric']}{frames}, 95 % interval {low:.3g} to {high:.3g}, "
        f"paired over {row['episodes']} episodes: {ahead}"
    )


def side(store: Store, name: str) -> str:
    """What `scores.compare` takes for a name: a system that stands for itself, else the run that is meant."""
    rows = store.table("scores", columns=["run", "system"])
    runs = set(rows.run[rows.system == name])
    if "/" in name or NO_RUN in runs or len(runs) == 1 or name in set(rows.run):
        return name
    try:
        return str(find_run(store, name)["run"])
    except UserError:
        return name  # compare knows all names of its table, and names the nearest
