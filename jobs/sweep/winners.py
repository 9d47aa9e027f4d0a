"""What becomes of a sweep's best: trained again from seeds that the search never saw, and scored on test, once.

Both are things that find themselves done: a training of this very config, and the scores of a checkpoint. So a sweep
that was killed here and is resumed does neither twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.config import revise
from longtake.errors import UserError
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import evaluate, plan_cells
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol
    from longtake.jobs.sweep.config import Sweep
    from longtake.storage.store import Store
    from longtake.tuning.study import Assignment


def retrain_and_score_winners(sweep: Sweep, store: Store, best: list[Assignment]) -> None:
    """Train each of the best from fresh seeds, score all of these on the test split, and print what they reach."""
    assert sweep.config.winners is not None
    runs = {given.number: [train.train(c, store, reuse=True) for c in trainings(sweep, given)] for given in best}
    protocol = score(sweep, store, [run for each in runs.values() for run in each])
    for number, each in runs.items():
        print(f"winner: trial {number}, {_reached(sweep, store, each, protocol)}", flush=True)


def trainings(sweep: Sweep, given: Assignment) -> list[WorldModelTraining]:
    """The configs of a winner's trainings. One worker trains in this process: the same weights, sooner."""
    assert sweep.config.winners is not None
    config = sweep.trial(given.labels, given.number)
    return [
        revise(
            config,
            {
                "name": f"{sweep.config.name}-best-{given.number:03d}-{seed}",
                "seed": config.seed + seed,
                "workers": config.workers if config.workers > 1 else 0,
            },
        )
        for seed in range(1, sweep.config.winners.seeds + 1)
    ]


def score(sweep: Sweep, store: Store, runs: list[str]) -> Protocol:
    """Score the last checkpoints of runs on the test split, beside the floors; returns what they were scored by.

    Raises:
        UserError: some could not be scored.
    """
    assert sweep.config.test_protocol is not None
    dataset, subjects = sweep.base.data.first, []
    for run in runs:
        step = checkpoints.newest(store, run)
        assert step is not None
        subjects.append(EvaluatedCheckpoint.read(store, run, sweep.config.name, step, dataset))
    evaluation = EvaluateConfig(protocols=[sweep.config.test_protocol], wiped=False, stranger=False)
    cells = plan_cells(evaluation, store, subjects)
    if evaluate(cells, store).failed:
        raise UserError(f"sweep {sweep.id}: its winners could not be scored: longtake sweep --resume {sweep.id}")
    protocol: Protocol = cells[0].payload.protocol
    return protocol


def _reached(sweep: Sweep, store: Store, runs: list[str], protocol: Protocol) -> str:
    """The mean over seeds of the mean beyond the window, and how far the seeds lie apart."""
    objective = sweep.config.objective
    metric = objective.metric if objective.metric in protocol.metrics else protocol.metrics[0]
    query = f"protocol == {protocol.hash!r} and metric == {metric!r} and system == {sweep.config.name!r}"
    rows = store.table("scores", where=query)
    far = rows[rows["run"].isin(runs) & (rows["distance"] > (objective.beyond or 0))]
    means = far.groupby("run")["value"].mean()
    return (
        f"{protocol.task} {metric} on test {means.mean():.4f}, from {means.min():.4f} to {means.max():.4f} "
        f"over {len(means)} fresh seeds"
    )
