"""What a sweep's trial runs: a training like any other, scored at its checkpoints until the judge says no."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from evals.protocol import Protocol
from jobs.evaluate import EvaluateConfig, Subject, plan_cells
from jobs.score_cell import score_cell
from jobs.sweep import Sweep
from jobs.train import start_record
from jobs.train_config import WorldModelTraining
from jobs.train_loop import train_loop
from longtake import tables
from longtake.judged import Judge, JudgedContext, Mailbox, Numbers, Stopped
from longtake.store import Store
from longtake.training import LocalContext, fit

if TYPE_CHECKING:
    from jobs.sweep import Objective
    from longtake.study import Assignment
    from longtake.training import Context


@dataclass(frozen=True)
class TrialRun:
    """What the loop of a trial needs; travels to Ray Train workers."""

    config: WorldModelTraining
    objective: Objective
    judge: Judge


def run_trial(payload: tuple[Store, Sweep], given: Assignment, judge: Judge) -> None:
    """Train one point of the space as the run that it was given, from that run's newest checkpoint."""
    store, sweep = payload
    config = sweep.trial(given.labels, given.number)
    record = start_record(config, store, given.run, sweep=sweep.id, trial=given.number)
    last = 0

    def heard(step: int, numbers: Numbers) -> bool:
        nonlocal last
        last = step
        return judge(step, numbers)

    with record:
        train_judged(config, sweep.config.objective, store, given.run, heard)
        if last < config.steps:
            record.finish("stopped", f"pruned at step {last}")


def train_judged(config: WorldModelTraining, objective: Objective, store: Store, run: str, judge: Judge) -> None:
    """Train in this process for one worker, else on workers of its own whose rank 0 asks through a mailbox."""
    if config.workers <= 1:
        device = "cuda" if config.gpus_per_worker else "cpu"
        context = LocalContext(store, run, keep=config.keep, keep_best=config.keep_best, device=device)
        # No Ray worker, so no Ray Data beside it: the clips are the same.
        alone = config.model_copy(update={"workers": 0})
        trial_loop(context, TrialRun(alone, objective, judge))
        return
    mailbox = Mailbox(store, run, uuid.uuid4().hex[:8])
    with mailbox.answered_by(judge):
        fit(
            trial_loop,
            TrialRun(config, objective, mailbox.ask),
            store=store,
            run_id=run,
            workers=config.workers,
            gpus_per_worker=config.gpus_per_worker,
            max_failures=config.max_failures,
            keep=config.keep,
            keep_best=config.keep_best,
        )


def trial_loop(context: Context, trial: TrialRun) -> None:
    """The train loop under a judge; it ends where the judge says no."""
    measured = partial(measure, context, trial.config, trial.objective)
    try:
        train_loop(JudgedContext(context, measured, trial.judge), trial.config)
    except Stopped:
        return


def measure(context: Context, config: WorldModelTraining, objective: Objective, step: int, numbers: Numbers) -> Numbers:
    """The objective at a checkpoint, and the frames that it took to get there."""
    frames = float(step * config.data.frames_per_step)
    if objective.protocol is not None:
        value = score_checkpoint(context, config, objective, objective.protocol, step)
    else:
        assert objective.column is not None
        told = numbers.get(objective.column)
        value = _recorded(context, objective.column, step) if told is None else told
    return {"objective": value, "frames": frames}


def score_checkpoint(
    context: Context, config: WorldModelTraining, objective: Objective, protocol: Protocol, step: int
) -> float:
    """Score the checkpoint as `evaluate` would, write the rows, and return the mean beyond the window."""
    threads = torch.get_num_threads()
    read = Subject.read(context.store, context.run_id, config.name, step, config.data.first)
    subject = replace(read, latents=False)  # no ceilings: the same for all trials
    asked = EvaluateConfig(protocols=[protocol], wiped=False, stranger=False)
    values: list[float] = []
    for cell in plan_cells(asked, context.store, [subject]):
        if cell.payload.run != context.run_id:
            continue  # the floors are the same for all trials
        rows = score_cell(cell.payload)
        tables.append(context.store, "scores", rows, part=cell.part)
        beyond = objective.beyond or 0
        values += [row["value"] for row in rows if row["metric"] == objective.metric and row["distance"] > beyond]
    torch.set_num_threads(threads)
    return sum(values) / len(values)


def _recorded(context: Context, column: str, step: int) -> float:
    """A number of an earlier session: that of the step that led to the checkpoint."""
    rows = tables.read(context.store, "steps", where=f"run == {context.run_id!r} and step == {step - 1}")
    return float(rows[column].iloc[0])
