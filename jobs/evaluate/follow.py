"""`longtake evaluate --follow`: scores checkpoints of runs as they appear, beside the training, until the runs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.evaluate.check import beyond_training
from longtake.jobs.evaluate.grid import evaluate, plan_cells
from longtake.tables import find
from longtake.tables import table as tables
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.grid import Cell, GridReport
    from longtake.jobs.evaluate.config import EvaluateConfig
    from longtake.storage.store import Store

POLL_S = 5.0
Evaluate = Callable[[Sequence["Cell"], "Store"], "GridReport"]


def follow(
    settings: EvaluateConfig, store: Store, runs: str, poll_s: float = POLL_S, work: Evaluate = evaluate
) -> list[str]:
    """Score every checkpoint of the runs once, oldest first, until no run goes on and none is left.

    A checkpoint that the training prunes before its turn is told and passed over.

    Returns:
        The parts that could not be scored.

    Raises:
        UserError: no such run, or a protocol that a dataset or model cannot serve.
    """
    from longtake.cluster.launch import launch

    ids, done, failed = find.find_ids(store, runs, find.WORLD_MODELS), set[tuple[str, int]](), list[str]()
    with launch():
        while True:
            alive = _alive(store, ids)  # before looking, so that a run's last checkpoint is not missed
            new = [(run, step) for run in ids for step in checkpoints.complete(store, run) if (run, step) not in done]
            for run, step in new:
                warned = run in {before for before, _ in done}
                failed += _score(settings, store, run, step, work, warned)
                done.add((run, step))
            if not new and not alive:
                return failed
            if not new:
                time.sleep(poll_s)


def _score(settings: EvaluateConfig, store: Store, run: str, step: int, work: Evaluate, warned: bool) -> list[str]:
    """Score one checkpoint; the parts that failed while it was there. `warned`: the run was warned of already."""
    row = tables.read(store, "runs", where=f"run == {run!r}").iloc[0]
    try:
        subject = EvaluatedCheckpoint.read(store, run, str(row["name"]), step, str(row["dataset_name"]))
        loud = beyond_training(settings.protocols, [subject])
        if loud and not warned:
            print(loud)
        report = work(plan_cells(settings, store, [subject]), store)
    except UserError:
        if step in checkpoints.complete(store, run):
            raise
        report = None
    if step not in checkpoints.complete(store, run) and (report is None or report.failed):
        print(f"{run}: the checkpoint of step {step} was pruned before it was scored; train with a larger `keep`")
        return []
    assert report is not None
    print(f"{run} step {step}: {report.ran} cells scored, {report.reused} were there already", flush=True)
    return list(report.failed)


def _alive(store: Store, ids: Sequence[str]) -> bool:
    rows = tables.read(store, "runs", where=f"run in {list(ids)!r}")
    return bool((rows["status"] == "running").any())
