"""`longtake gc`: what nobody can use any more is removed: halves of files, unfinished checkpoints, halves of removals.

Finished datasets, checkpoints and rows are never touched: those `longtake rm` removes, by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from longtake.datasets.dataset import dataset_names
from longtake.errors import UserError
from longtake.jobs.display.table_formats import size
from longtake.storage import lease
from longtake.storage.store import Store, open_store
from longtake.tables import schema
from longtake.tables.run_notes import REMOVED
from longtake.training import checkpoints

HALF_AFTER_S = 24 * 3600.0
"""Older than any write takes."""


@dataclass(frozen=True)
class Waste:
    """Files of no use: why, whose run they are of (none: nobody's), which, and their bytes."""

    why: str
    run: str
    names: tuple[str, ...]
    bytes: int


def main(store: str, dry_run: bool) -> None:
    """The command."""
    place = open_store(store)
    place.require_exists()
    wastes = list(waste(place))
    if wastes and not dry_run:
        place.require_writable()
    freed = 0
    for one in wastes:
        kept = "" if dry_run else _removed(place, one)
        freed += 0 if kept else one.bytes
        print(f"{size(one.bytes):>9}  {one.why}{kept}")
    for line in kept_lines(place):
        print(f"note: {line}")
    print(f"{size(freed)} {'would be' if dry_run else ''} freed".replace("  ", " "))


def waste(store: Store) -> Iterator[Waste]:
    """All that is of no use."""
    halves = store.half_written("", HALF_AFTER_S)
    if halves:
        yield Waste("halves of files, of writers that were killed", "", tuple(halves), sum(halves.values()))
    runs = schema.with_columns("runs", store.table("runs"), ("status",))
    status = dict(zip(runs.run, runs.status, strict=True)) if len(runs) else {}
    for folder in store.list("runs"):
        run = folder.strip("/").rpartition("/")[2]
        if status.get(run) == REMOVED:
            yield _below(store, f"rest of run {run}, which was removed", run, f"runs/{run}")
        elif status.get(run, "running") != "running":
            for step in checkpoints.unfinished(store, run):
                yield _below(store, f"unfinished checkpoint {step} of run {run}", run, checkpoints.folder(run, step))


def _below(store: Store, why: str, run: str, folder: str) -> Waste:
    sizes = store.sizes(folder)
    return Waste(why, run, (folder,), sum(sizes.values()))


def _removed(store: Store, one: Waste) -> str:
    """Remove it, and say why not where somebody has begun to use it."""
    if not one.run:
        store.remove(one.names)
        return ""
    try:
        with lease.of_run(store, one.run):
            for folder in one.names:
                if not folder.endswith(one.run):
                    store.remove_folder(folder)
    except lease.Held as error:
        return f": kept, {error}"
    for folder in one.names:
        store.remove_folder(folder)
    return ""


def kept_lines(store: Store) -> Iterator[str]:
    """What may be of no use, and only people know."""
    whole = set(dataset_names(store))
    for path in store.list("datasets"):
        name = path.strip("/").rpartition("/")[2]
        if name not in whole:
            yield f"dataset {name} is unfinished: the command that began it goes on with it; or longtake rm {name}"
    try:
        known = set(store.table("runs", columns=["run"]).run)
    except UserError as error:
        yield str(error)
        return
    for path in store.list("runs"):
        run = path.strip("/").rpartition("/")[2]
        if run not in known:
            yield f"runs/{run} is in no row of the table runs: left alone"
