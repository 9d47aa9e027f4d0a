"""What a sweep's trial runs: a training like any other, scored at its checkpoints until the judge says no."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from longtake.cluster import accelerators
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import plan_cells
from longtake.jobs.sweep.config import Sweep
from longtake.jobs.train.command import record_training_cost, start_record
from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loop import train_loop
from longtake.models.analysis.cost import conditions_for
from longtake.models.config import SamplerConfig
from longtake.models.rollout import prefill, rollout
from longtake.models.world_model import WorldModel
from longtake.storage import lease
from longtake.storage.store import Store
from longtake.tables import table as tables
from longtake.training.context import LocalContext
from longtake.training.early_stopping import EarlyStoppingContext, Judge, Numbers, Stopped, StoreChannel
from longtake.training.fit import fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from longtake.jobs.sweep.config import Cost, Objective
    from longtake.storage.lease import Lease
    from longtake.training.context import Context
    from longtake.tuning.study import Assignment


COST_CALLS = 9
"""Frames that are timed; the median counts."""


@dataclass(frozen=True)
class TrialRun:
    """What the loop of a trial needs; travels to Ray Train workers."""

    config: WorldModelTraining
    objective: Objective
    judge: Judge
    against: Sequence[Cost] = ()


def run_trial(payload: tuple[Store, Sweep], given: Assignment, judge: Judge) -> None:
    """Train one point of the space as the run that it was given, from that run's newest checkpoint."""
    store, sweep = payload
    config = sweep.trial(given.labels, given.number)
    last = 0

    def heard(step: int, numbers: Numbers) -> bool:
        nonlocal last
        last = step
        return judge(step, numbers)

    with (
        lease.of_run(store, given.run, within=sweep.token) as held,
        start_record(config, store, given.run, held, sweep=sweep.id, trial=given.number) as record,
        record_training_cost(record, store),
    ):
        train_judged(TrialRun(config, sweep.config.objective, heard, sweep.config.against), store, given.run, held)
        if last < config.steps:
            record.finish("stopped", f"pruned at step {last}")


def train_judged(trial: TrialRun, store: Store, run: str, held: Lease) -> None:
    """Train in this process for one worker, else on workers of its own whose rank 0 asks through a mailbox."""
    config = trial.config
    if config.workers <= 1:
        device = "cuda" if accelerators.least(config.gpus_per_worker) else "cpu"
        context = LocalContext(store, run, keep=config.keep, keep_best=config.keep_best, device=device, held=held)
        # No Ray worker, so no Ray Data beside it: the clips are the same.
        trial_loop(context, replace(trial, config=config.model_copy(update={"workers": 0})))
        return
    mailbox = StoreChannel(store, run, uuid.uuid4().hex[:8])
    with mailbox.answered_by(trial.judge):
        fit(
            trial_loop,
            replace(trial, judge=mailbox.ask),
            store=store,
            run_id=run,
            workers=config.workers,
            gpus_per_worker=accelerators.least(config.gpus_per_worker),
            max_failures=config.max_failures,
            keep=config.keep,
            keep_best=config.keep_best,
            held=held,
        )


def trial_loop(context: Context, trial: TrialRun) -> None:
    """The train loop under a judge; it ends where the judge says no."""
    costs = costs_of(trial.config, context.device) if trial.against and context.rank == 0 else {}
    weighed = {name: costs[name] for name in trial.against if costs}

    def measured(step: int, numbers: Numbers) -> Numbers:
        return measure(context, trial.config, trial.objective, step, numbers) | weighed

    try:
        train_loop(EarlyStoppingContext(context, measured, trial.judge), trial.config)
    except Stopped:
        return


@torch.no_grad()
def costs_of(config: WorldModelTraining, device: str) -> dict[Cost, float]:
    """What a model costs as it generates, whatever it has learnt: milliseconds a frame, and bytes it carries."""
    model = WorldModel(config.model).to(device).eval()
    longest = max(stage.frames for stage in config.data.curriculum)
    chunk = config.model.chunk or 1
    shown = torch.zeros(1, longest, config.model.channels, config.model.height, config.model.width, device=device)
    memory = prefill(model, shown, conditions_for(config.model, longest).to(device))
    conditions = conditions_for(config.model, chunk).to(device)

    def frames() -> None:
        rollout(model, conditions, chunk, memory, SamplerConfig(steps=1), [torch.Generator().manual_seed(0)])

    seconds = statistics.median(_timed(frames, device) for _ in range(COST_CALLS))
    return {"ms_per_frame": 1000 * seconds / chunk, "carried_bytes": float(memory.nbytes["total"])}


def _timed(call: Callable[[], None], device: str) -> float:
    began = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(context: Context, config: WorldModelTraining, objective: Objective, step: int, numbers: Numbers) -> Numbers:
    """The objective at a checkpoint, and the frames that it took to get there."""
    frames = float(step * config.data.frames_per_step)
    if objective.protocol is not None:
        value = score_checkpoint(context, config, objective, objective.protocol, step)
    else:
        assert objective.column is not None
        number = numbers.get(objective.column)
        value = _recorded(context, objective.column, step) if number is None else number
    return {"objective": value, "frames": frames}


def score_checkpoint(
    context: Context, config: WorldModelTraining, objective: Objective, protocol: Protocol, step: int
) -> float:
    """Score the checkpoint as `evaluate` would, write the rows, and return the mean beyond the window."""
    threads = torch.get_num_threads()
    read = EvaluatedCheckpoint.read(context.store, context.run_id, config.name, step, config.data.first)
    subject = replace(read, latents=False)  # no ceilings: the same for all trials
    gpus = 0.0 if context.device == "cpu" else 1.0
    evaluation = EvaluateConfig(protocols=[protocol], wiped=False, stranger=False, gpus_per_cell=gpus)
    values: list[float] = []
    for cell in plan_cells(evaluation, context.store, [subject]):
        if cell.payload.run != context.run_id:
            continue  # the floors are the same for all trials
        rows = score_cell(cell.payload)
        context.require_lease()
        tables.append(context.store, "scores", rows, part=cell.part)
        beyond = objective.beyond or 0
        values += [row["value"] for row in rows if row["metric"] == objective.metric and row["distance"] > beyond]
    torch.set_num_threads(threads)
    return sum(values) / len(values)


def _recorded(context: Context, column: str, step: int) -> float:
    """A number of an earlier session: that of the step that led to the checkpoint."""
    rows = tables.read(context.store, "steps", where=f"run == {context.run_id!r} and step == {step - 1}")
    return float(rows[column].iloc[0])
