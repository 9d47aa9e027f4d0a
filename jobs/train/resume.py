"""Going on with a training: with the run itself, whose settings must be these, or with a fork, whose may be others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.config import config_hash, differences, loads
from longtake.datasets.mixture import open_data
from longtake.errors import UserError
from longtake.jobs.train.config import TrainConfig
from longtake.storage import lease
from longtake.tables.find import Row, find_run
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.storage.store import Store

RESUME_MAY_CHANGE = ("workers", "min_workers", "gpus_per_worker", "max_failures", "keep", "watch")
"""Settings that change where and how a training is run, and not what is learnt: a resumed run may have others."""


def stored_config(store: Store, run: str, overrides: list[str]) -> TrainConfig:
    """The config that a run was started with, with overrides on top.

    Raises:
        UserError: no such run, or wrong overrides.
    """
    row = find_run(store, run)
    return loads(TrainConfig, str(row["config"]), overrides)


def describe_resume(config: TrainConfig, store: Store, resume: str, fork: bool) -> str:
    """What going on with a run means, in words; nothing is touched.

    Raises:
        UserError: what would be refused.
    """
    dataset = open_data(store, config.data.dataset)
    row, changed = (
        _compared(store, resume, config, dataset) if fork else (named_run(store, resume, config, dataset), [])
    )
    step = checkpoints.newest(store, str(row["run"]))
    if fork:
        _require_fork(config, changed, str(row["run"]), checkpoints.require_newest(store, str(row["run"])))
    at = f"from step {step}" if step is not None else "from the beginning, as it has no checkpoint"
    difference = f"; changed: {'; '.join(changed)}" if changed else ""
    return f"\nresume    {'a fork of ' if fork else ''}run {row['run']} {at}{difference}"


def named_run(store: Store, run: str, config: TrainConfig, dataset: Data) -> Row:
    """The row of a run to go on with, if its config and data are these; where and how it is run may be another."""
    row, changed = _compared(store, run, config, dataset)
    changed = [line for line in changed if line.split(":")[0].split(".")[0] not in RESUME_MAY_CHANGE]
    if changed:
        lines = [f"resume: run {row['run']} was started otherwise: {line}" for line in changed]
        if not _of_engine(config, changed):  # a fork would be refused too
            lines.append("resume: add --fork to go on as a new run with what is set now")
        raise UserError(*lines)
    return row


def same_training(store: Store, config: TrainConfig, dataset: Data) -> Row | None:
    """The newest training of this config on this very data."""
    runs = store.table("runs")
    if not len(runs):
        return None
    same = (
        (runs.kind == config.run_kind)
        & (runs.config_hash == config_hash(config))
        & (runs.dataset == dataset.fingerprint)
    )
    rows = runs[same].sort_values("run").to_dict("records")
    return {str(k): v for k, v in rows[-1].items()} if rows else None


def require_nothing_lost(config: TrainConfig, store: Store, run: str) -> None:
    """Raise UserError if a run without a checkpoint had one, by its record or by the steps that it wrote."""
    checkpoints.require_none(store, run)
    steps = store.table("steps", where=f"run == {run!r}", columns=["step"])
    # Rows are written before each checkpoint: with later ones than the first covers, that one had been sealed.
    if len(steps) and (last := int(steps.step.max())) >= config.checkpoint_every:
        raise UserError(
            f"run {run}: it has come to step {last + 1}, by the table `steps`, and runs/{run}/checkpoints holds no "
            "checkpoint: bring that folder back as it was, or begin a new run (without --resume)"
        )


def fork_of(store: Store, run: str, config: TrainConfig, dataset: Data) -> str:
    """RUN@STEP of the checkpoint that a new run goes on from; tells what the new run changes."""
    from longtake.jobs.train import init_weights  # which needs torch

    row, changed = _compared(store, run, config, dataset)
    run = str(row["run"])
    with lease.of_run(store, run):  # of one that goes on, what is the newest now may be deleted in a moment
        step = checkpoints.require_newest(store, run)
    _require_fork(config, changed, run, step)
    with checkpoints.opened(store, run, step) as folder:
        problems = init_weights.shape_mismatches(config, folder)
    if problems:
        raise UserError(*(f"fork: {line}" for line in problems))
    print(f"forking run {run} at step {step}: " + ("; ".join(changed) or "nothing is changed"), flush=True)
    return f"{run}@{step}"


def _require_fork(config: TrainConfig, changed: list[str], run: str, step: int) -> None:
    """Raise UserError for differences with which a new run cannot go on from a checkpoint."""
    problems = [f"{line}: its checkpoint carries its own" for line in changed if line.startswith("tokenizer:")]
    problems += [
        f"{line}: the optimizer's state is that engine's; set it as it was" for line in _of_engine(config, changed)
    ]
    if config.steps <= step:
        problems.append(f"steps: {config.steps}, but run {run} has come to step {step}: set steps to more")
    if problems:
        raise UserError(*(f"fork: {line}" for line in problems))


def _of_engine(config: TrainConfig, changed: list[str]) -> list[str]:
    """Of the differences those in how the optimizer's state is kept, which no checkpoint lets change."""
    shared = ("engine.zero:",) if config.engine.backend == "deepspeed" else ()
    return [
        line
        for line in changed
        if line.startswith(("engine.backend:", *shared)) or (line.startswith("engine.precision:") and "bf16" in line)
    ]


def _compared(store: Store, run: str, config: TrainConfig, dataset: Data) -> tuple[Row, list[str]]:
    """The row of a run, and a line per difference of its config and data from these."""
    import yaml

    row = find_run(store, run, (config.run_kind,))
    changed = differences(yaml.safe_load(row["config"]), config.model_dump(mode="json"))
    if row["dataset"] != dataset.fingerprint:
        changed.append(
            f"dataset {dataset.name}: its content changed ({row['dataset']} then, {dataset.fingerprint} now)"
        )
    return row, changed
