"""`longtake reproduce NAME --scale SCALE`: a table of the paper, from data to page, each cell a run like any other.

Collect, train every row from every seed, evaluate, write the page. What is there already is reused, so one that was
killed goes on, and one that is done writes its page again in a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.config import build, dump, load
from longtake.jobs.collect import command as collect
from longtake.jobs.encode import command as encode
from longtake.jobs.evaluate import grid
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.reproduce import page
from longtake.jobs.reproduce.config import Table, read
from longtake.jobs.train import command as train
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.jobs.train.config import WorldModelTraining


def main(name: str, scale: str, overrides: list[str], store: str, dry_run: bool) -> None:
    """The command: check everything, then run what is missing; with `dry_run` print the plan and touch nothing.

    Raises:
        UserError: whatever is wrong with the table, before anything starts.
    """
    table = read(name, scale, overrides)
    if dry_run:
        print(dump(table.config) + "\n" + describe(table))
        return
    where = open_store(store)
    where.require_writable()
    for dataset in table.config.collect:
        collect.check(load(collect.CollectConfig, dataset, search=collect.CONFIGS), where)
    print(f"page      {run(table, where)}")


def run(table: Table, store: Store) -> str:
    """Do what is missing of a table; returns where its page lies."""
    from longtake.cluster.demand import Demand
    from longtake.cluster.launch import launch

    cells = [training for row in table.trainings.values() for training in row]
    with launch(Demand(max(1, *(training.workers for training in cells)))):
        _make_data(table, store)
        # Seed by seed, so that a table that is stopped early has whole columns.
        order = sorted(cells, key=lambda training: table.config.seeds.index(training.seed))
        for training in order:
            train.check(training, store)
        subjects = [_subject(store, train.train(training, store, reuse=True), training) for training in order]
        if grid.evaluate(grid.plan_cells(table.evaluation, store, subjects), store).failed:
            raise SystemExit(1)
    return page.write(table, store, subjects)


def _make_data(table: Table, store: Store) -> None:
    """The datasets, and the latents of the last one where models live on them."""
    for name in table.config.collect:
        dataset = collect.run(load(collect.CollectConfig, name, search=collect.CONFIGS), store)
    if table.tokenizer is not None:
        train.check(table.tokenizer, store)
        tokenizer = train.train(table.tokenizer, store, reuse=True)
        settings = {"name": f"{dataset.name}-latents", "dataset": dataset.name, "tokenizer": tokenizer}
        encode.run(encode.prepare(build(encode.EncodeConfig, settings), store), store)


def _subject(store: Store, run_id: str, training: WorldModelTraining) -> EvaluatedCheckpoint:
    step = checkpoints.require_newest(store, run_id)
    return EvaluatedCheckpoint.read(store, run_id, training.name, step, training.data.first)


def describe(table: Table) -> str:
    """The plan in words: what each row is and takes, and the hours in all."""
    from longtake.jobs.presets import in_words

    lines, hours = [], 0.0
    for name, (training, *others) in table.trainings.items():
        parameters, one = _size(training, table.config.flops_per_s)
        hours += one * (1 + len(others))
        lines.append(
            f"{name:<16} {parameters / 1e6:.3g} M parameters, {training.steps} steps of "
            f"{training.data.frames_per_step} frames, {one:.3g} hours a seed: {in_words(training.model)}"
        )
    work = f"{len(lines)} rows x {len(table.config.seeds)} seeds: {hours:.3g} hours"
    lines.append(f"trainings        {work} at {table.config.flops_per_s:.3g} operations a second")
    questions = ", ".join(f"{p.task} {p.context} -> {p.horizon}" for p in table.evaluation.protocols)
    return "\n".join([*lines, f"asked            {questions}"])


def _size(training: WorldModelTraining, flops_per_s: float) -> tuple[int, float]:
    """Parameters, and hours of one training at such a speed; with `recompute` a third more."""
    from longtake.models.analysis.cost import Costs

    costs, start, flops = Costs(training.model), 0, 0.0
    for stage in training.data.curriculum:
        end = min(stage.until or training.steps, training.steps)
        clips = training.data.frames_per_step / stage.frames
        flops += max(0, end - start) * clips * costs.training_flops(stage.frames)
        start = end
    return costs.parameters, flops * (4 / 3 if training.recompute else 1) / flops_per_s / 3600
