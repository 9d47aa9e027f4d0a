"""`longtake evaluate`: score checkpoints on memory tasks, as a resumable grid of Ray tasks that write rows.

A cell is (system, task, a few episodes). Its rows land in the `scores` table in one part with a deterministic name, so
a killed evaluation goes on with the cells that are missing, and the numbers do not depend on the number of workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.config import dump, load
from longtake.jobs.evaluate.check import beyond_training
from longtake.jobs.evaluate.config import CONFIGS, EvaluateConfig, _only_tasks, limited
from longtake.jobs.evaluate.grid import evaluate, fewer_episodes, find_subjects, plan_cells
from longtake.storage.store import open_store

if TYPE_CHECKING:
    pass


def main(
    config: str,
    overrides: list[str],
    store: str,
    dry_run: bool,
    runs: str,
    tasks: str | None,
    limit: int | None = None,
    follow: bool = False,
    brief: bool = False,
) -> None:
    """The command: check, print the grid, score what is missing."""
    where = open_store(store)
    settings = limited(_only_tasks(load(EvaluateConfig, config, overrides, search=CONFIGS), tasks), limit)
    if follow and not dry_run:
        from longtake.jobs.evaluate import follow as beside

        raise SystemExit(1 if beside.follow(settings, where, runs) else 0)
    subjects = find_subjects(where, runs)
    cells = plan_cells(settings, where, subjects)
    for line in fewer_episodes(settings, cells):
        print(f"note: {line}")
    loud = beyond_training(settings.protocols, subjects)
    if loud:
        print(loud)
    if dry_run:
        print(dump(settings, brief))
        print("\n".join(f"checkpoint  {s.name} {s.run} step {s.step} on {s.dataset}" for s in subjects))
        print(f"cells       {len(cells)}")
        return
    report = evaluate(cells, where)
    hint = f"longtake results scores --store {where.argument}"
    print(f"{report.ran} cells scored, {report.reused} were there already: {hint}")
    if report.failed:
        raise SystemExit(1)
