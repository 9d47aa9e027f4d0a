"""A resumable grid: independent cells of work as Ray tasks, each writing its rows as one part of a table.

A cell's part has a deterministic name, so a cell that is run twice overwrites itself, and a grid that was killed
goes on with the cells whose part is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longtake.storage.store import Store, open_store
from longtake.tables import merging
from longtake.tables import table as tables

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One piece of work: the part that it writes, what the work function is called with, and its share of a card."""

    part: str
    payload: Any
    gpus: float = 0.0


@dataclass
class GridReport:
    """What happened: cells run now, cells found done, and the reason of each failure by part."""

    ran: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run_grid(
    store: Store,
    table: str,
    cells: Sequence[Cell],
    work: Callable[[Any], Rows],
    *,
    cpus_per_cell: float = 1.0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> GridReport:
    """Run the cells that are not in the table yet, on the open Ray.

    Args:
        work: payload → rows; importable in a worker, deterministic in its payload.
        on_done: called with (cells done, cells in all) after each, reused ones included.

    Returns:
        The report. A cell that raises is recorded there and the others go on; a worker that dies is retried.
    """
    report = GridReport()
    written = set(tables.parts(store, table))
    missing = [cell for cell in cells if cell.part not in written]
    report.reused = len(cells) - len(missing)
    on_done(report.reused, len(cells))
    for part, reason in _run(store, table, missing, work, cpus_per_cell):
        if reason is None:
            report.ran += 1
        else:
            report.failed[part] = reason
        on_done(report.reused + report.ran + len(report.failed), len(cells))
        if report.ran and report.ran % merging.LOOK_EVERY == 0:  # each worker writes too few to see that there are many
            merging.look(store, table)
    return report


def _run(
    store: Store, table: str, cells: Sequence[Cell], work: Callable[[Any], Rows], cpus: float
) -> Iterable[tuple[str, str | None]]:
    """Yield (part, reason of failure or None) as the cells end."""
    import ray

    task = ray.remote(_run_cell)
    waiting = {
        task.options(num_cpus=cpus, num_gpus=cell.gpus, max_retries=3).remote(work, store.uri, table, cell): cell.part
        for cell in cells
    }
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        part = waiting.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            yield part, _reason(error)
        else:
            yield part, None


def _run_cell(work: Callable[[Any], Rows], store_uri: str, table: str, cell: Cell) -> None:
    tables.append(open_store(store_uri), table, work(cell.payload), part=cell.part)


def _reason(error: Exception) -> str:
    """The last line of what went wrong in the worker: its own exception, not Ray's wrapping."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[-1]
