"""What is refused, pointed out and told before the first trial of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from longtake.cluster import accelerators
from longtake.config import differences, settings
from longtake.errors import UserError, unknown
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.check import protocol_problems
from longtake.jobs.sweep.config import Sweep, SweepConfig, file
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.models.analysis.reach import window_reach
from longtake.storage.store import Store
from longtake.tables.find import SWEEPS, find_runs
from longtake.training.engine_config import decay_start
from longtake.tuning import space
from longtake.tuning.search_config import expected_steps, rungs
from longtake.tuning.space import Axis, corners, points, size

MEASURED = ("loss", "grad_norm", "frames_per_s", "step_s", "data_wait", "replaced")
"""Columns of `steps` that every step has."""
MOST_SHOWN = 64
"""Points of a space that a dry run lists one by one."""


def check(sweep: Sweep, store: Store) -> Sweep:
    """Refuse what cannot run, all problems at once; returns the sweep with its objective settled.

    Raises:
        UserError: a field that a training does not have, corners of the space that are not valid, an objective
            that cannot be measured. Whether the machine holds the trials, `launch` asks.
    """
    problems = [f"space: {line}" for line in space.problems(sweep.config.space)]
    if problems:
        raise UserError(*problems)
    sweep = _measured(sweep, store)
    problem_at: dict[str, str] = {}
    reach, unmeasured = 0, list[str]()
    for labels in corners(sweep.config.space):
        try:
            config = sweep.trial(labels)
            train.check(config, store)
            unmeasured = unmeasured or _objective_problems(sweep.config, config, store)
            reach = max(reach, window_reach(config.model))
        except UserError as error:
            at = ", ".join(f"{field}={label}" for field, label in labels.items())
            for line in error.lines:
                problem_at.setdefault(line, at)
    problems = _search_problems(sweep.config) + unmeasured
    problems += [f"space: {line} (for one at {at})" for line, at in problem_at.items()]
    objective = sweep.config.objective
    beyond = reach if objective.beyond is None else objective.beyond
    if objective.protocol is not None and not problems:
        problems += _beyond_problems(objective.protocol, beyond)
    if problems:
        raise UserError(*problems)
    if objective.protocol is not None:
        resolved = objective.model_copy(update={"beyond": beyond})
        sweep = replace(sweep, config=sweep.config.model_copy(update={"objective": resolved}))
    return _with_earlier(sweep, store) if sweep.config.warm_start else sweep


def _with_earlier(sweep: Sweep, store: Store) -> Sweep:
    """The sweep with those that it begins with by their ids: a name may mean another one tomorrow."""
    try:
        ids = [str(row["run"]) for row in find_runs(store, sweep.config.warm_start, SWEEPS)]
    except UserError as error:
        raise UserError(*(f"warm_start: {line}" for line in error.lines)) from error
    sweep = replace(sweep, config=sweep.config.model_copy(update={"warm_start": ids}))
    if problems := [line for name in ids for line in _warm_problems(sweep, store, name)]:
        raise UserError(*problems)
    return sweep


def _measured(sweep: Sweep, store: Store) -> Sweep:
    """The sweep with an objective, also where its config gives none."""
    objective, data = sweep.config.objective, sweep.base.data
    if objective.protocol is None and objective.column is None:
        episodes = len(store.dataset(data.first).episodes("val"))
        objective = objective.cheap(max(stage.frames for stage in data.curriculum), episodes)
    return replace(sweep, config=sweep.config.model_copy(update={"objective": objective}))


def _warm_problems(sweep: Sweep, store: Store, name: str) -> list[str]:
    """Why the trials of an earlier sweep cannot be learnt from: their objective means something else."""
    try:
        searched, trained = (settings(*file(store, name, which)) for which in ("sweep", "train"))
    except UserError as error:
        return [f"warm_start: {line}" for line in error.lines]
    now = [config.model_dump(mode="json") for config in (sweep.config, sweep.base)]
    fields = ("objective", "against")
    changed = [line for field in fields for line in differences(searched.get(field), now[0][field], field)]
    for field in ("steps", "data", "validation"):
        changed += differences(trained.get(field), now[1][field], f"change.{field}")
    return [f"warm_start: the objective of sweep {name} means something else: {line}" for line in changed]


def _search_problems(config: SweepConfig) -> list[str]:
    lines, count = [], size(config.space)
    if config.sampling.method == "grid":
        ranges = [field for field, axis in config.space.items() if axis.count is None]
        lines += [f"sampling.method: a grid has no place for the range {field}; make it a choice" for field in ranges]
    if count is not None and count < config.trials:
        lines.append(
            f"trials: {config.trials}, but the space has {count} points, and none is tried twice: set trials={count} "
            "or lower"
        )
    if config.sampling.method == "nsga2" and not config.against:
        lines.append("sampling.method: nsga2 is for several objectives: name costs in `against`, or take tpe")
    if config.winners is not None and config.test_protocol is None:
        lines.append(f"winners.protocol: is required, for {config.objective.name} is no score of the test split")
    return lines


def _objective_problems(config: SweepConfig, trial: WorldModelTraining, store: Store) -> list[str]:
    objective, problems = config.objective, []
    first = config.pruning.begin(trial.steps)
    if config.pruning.method != "none" and first >= trial.steps:
        problems.append(f"pruning.first: {first} is not before the end of a trial ({trial.steps} steps)")
    if objective.column is not None:
        problems += _column_problems(objective.column, trial)
    if objective.protocol is not None:
        dataset = store.dataset(trial.data.first)
        problems += [f"objective.protocol: {line}" for line in protocol_problems(objective.protocol, dataset)]
    if (on_test := config.test_protocol) is not None:
        dataset = store.dataset(trial.data.first)
        problems += [f"winners.protocol: {line}" for line in protocol_problems(on_test, dataset)]
    return problems


def _column_problems(column: str, trial: WorldModelTraining) -> list[str]:
    """Why a column of `steps` is no objective: a trial does not write it, or not at its checkpoints."""
    scans = [f"layers.{number}.ssm" for number, layer in enumerate(trial.model.stack) if layer.scan_class]
    states = [f"state_{name}.{scan}" for scan in scans for name in ("mean", "std", "max", "rank")]
    lengths = {trial.data.curriculum[0].frames, trial.data.curriculum[-1].frames}
    held_out = ["val_loss", *["val_loss_short"] * (len(lengths) > 1), *states]
    if column not in (*MEASURED, *held_out):
        return [f"objective.column: {unknown('column of steps', column, (*MEASURED, *held_out))}"]
    if column in held_out and trial.checkpoint_every % trial.validation.every:
        return [
            f"objective.column: {column} is measured every {trial.validation.every} steps, but checkpoints are made "
            f"every {trial.checkpoint_every}: set change.checkpoint_every to a multiple of {trial.validation.every}"
        ]
    return []


def _beyond_problems(protocol: Protocol, beyond: int) -> list[str]:
    from longtake.evals.registry import TASKS

    _, distances = TASKS[protocol.task].frame_order(protocol)
    if (distances > beyond).any():
        return []
    return [
        f"objective.beyond: no frame of the protocol lies beyond {beyond} frames (the farthest that windows of the "
        f"space reach unless given); the farthest lies at {distances.max()}: set objective.protocol.horizon higher"
    ]


# --- axes that change nothing -------------------------------------------------------------------------------


def notes(sweep: Sweep) -> list[str]:
    """One line per axis that cannot change results, whatever the other axes are: its trials would be repetitions.

    And one where trials are judged early while their learning rates fall.
    """
    every = [sweep.trial(labels) for labels in corners(sweep.config.space)]
    lines = _rung_notes(sweep, every)
    for field in sweep.config.space:
        for fields, idle, why in IDLE:
            if field in fields and all(map(idle, every)):
                lines.append(f"space: {field} cannot change the results: {why}")
    return lines


def _rung_notes(sweep: Sweep, every: Sequence[WorldModelTraining]) -> list[str]:
    """Rungs at which a trial that learns fast looks worse than it will be: its rate is high then, and falls later."""
    steps = sweep.base.steps
    at = rungs(sweep.config.pruning, steps)
    falls = min(decay_start(config.engine, steps) if config.engine.final_lr < 1 else steps for config in every)
    if not at or falls >= at[-1]:
        return []
    share = math.floor(100 * (1 - at[-1] / steps)) / 100
    return [
        f"pruning: rungs at {', '.join(map(str, at))} judge trials whose learning rate falls from step {falls} on, so "
        f"what learns fast looks bad there: set change.engine.decay={share:g} (or final_lr=1)"
    ]


def _exact_carry(config: WorldModelTraining) -> bool:
    memory, block = config.memory, config.temporal_block
    longest = max(stage.frames for stage in config.data.curriculum)
    whole = not config.bptt_blocks or not block or config.bptt_blocks * block >= longest
    return whole and not (memory.carry_width or memory.regularise)


def _unread(field: str, config: WorldModelTraining) -> bool:
    kinds = (kind for layer in config.model.stack for kind in (layer.mixer_class, layer.local_class))
    return all(kind is None or field not in kind.settings for kind in kinds)


def _own_windows(config: WorldModelTraining) -> bool:
    return bool(config.model.chunk) or all(layer.window or layer.local_class is None for layer in config.model.stack)


IDLE: list[tuple[Sequence[str], Callable[[WorldModelTraining], bool], str]] = [
    (
        ["temporal_block", "bptt_blocks", "memory.overlap"],
        _exact_carry,
        "the memory is carried exactly and gradients flow through whole clips, so blocks change the cost only; "
        "set bptt_blocks (below a clip) or memory.carry_width",
    ),
    *(
        ([f"model.{field}"], partial(_unread, field), "no layer has a mixer that reads it")
        for field in ("d_state", "headdim", "expand", "d_conv", "heads")
    ),
    (["model.window"], _own_windows, "every layer has a window of its own, or no local mixer"),
    (
        ["memory.regularise_gain"],
        lambda config: not config.memory.regularise,
        "memory.regularise is 0",
    ),
    (["engine.decay"], lambda config: config.engine.final_lr == 1, "engine.final_lr is 1, so the rate never falls"),
    (
        ["recompute", "keep", "keep_best", "max_failures", "engine.zero", "engine.offload", "engine.threads", "name"],
        lambda config: True,
        "it is about the cost only, or the name",
    ),
]
"""Fields, when they are idle, and why."""


# --- the plan in words --------------------------------------------------------------------------------------


def describe(sweep: Sweep, store: Store) -> str:
    """The space and the plan in words."""
    from longtake.cluster.launch import machine_cpus

    config, base = sweep.config, sweep.base
    need, pruning = sweep.need, config.pruning
    each = need.cpus_per_worker + need.data_cpus_per_worker
    rungs = f", from step {pruning.begin(base.steps)} on" if pruning.method != "none" else ""
    against = f", against {' and '.join(config.against)}" if config.against else ""
    frames = config.trials * base.steps * base.data.frames_per_step
    return "\n".join(
        [
            "space",
            *(f"  {field:<28}{_axis(axis)}" for field, axis in config.space.items()),
            *_matrix(config),
            f"trials     {config.trials} x {base.steps} steps, at most {frames:,} frames; {config.at_once} at once",
            f"search     {config.sampling.method}, seed {config.sampling.seed}; pruning: {pruning.method}{rungs}",
            f"objective  {config.objective.name}, {config.objective.direction}, every {base.checkpoint_every} steps"
            + (f", at distances beyond {config.objective.beyond}" if config.objective.protocol else "")
            + against,
            *_winners(config),
            f"machine    {config.at_once} trials x {need.workers} workers x {each:g} CPUs = "
            f"{config.at_once * need.workers * each:g} of {machine_cpus()} CPUs"
            + accelerators.describe(base.gpus_per_worker, config.at_once * need.workers),
            *(f"too much   {line}" for line in need.problems(machine_cpus(), math.inf)),
            f"cost       {_cost(sweep, store)}",
            *(f"note       {line}" for line in notes(sweep)),
        ]
    )


def _matrix(config: SweepConfig) -> list[str]:
    """The points one by one where they are few, else how many there are."""
    count = size(config.space)
    if count is None or count > MOST_SHOWN:
        return [f"points     {'infinitely many' if count is None else count}"]
    lines = [", ".join(f"{field}={short(label)}" for field, label in point.items()) for point in points(config.space)]
    return [f"points     {count}", *(f"  {line}" for line in lines)]


def _winners(config: SweepConfig) -> list[str]:
    if config.winners is None:
        return []
    winners = config.winners
    return [
        f"winners    the best {winners.top} trained again with {winners.seeds} other seeds each, scored on test once"
    ]


def _cost(sweep: Sweep, store: Store) -> str:
    """Frames that pruning should leave, and how long they take by trials of this store."""
    config, base = sweep.config, sweep.base
    share = expected_steps(config.pruning, base.steps) / base.steps
    again = config.winners.top * config.winners.seeds if config.winners else 0
    frames = (config.trials * share + again) * base.steps * base.data.frames_per_step
    estimate = f"about {frames:,.0f} frames ({share:.0%} of the most for trials"
    estimate += f", {again} winners' trainings)" if again else ")"
    rate = _frames_per_second(sweep, store)
    if rate is None:
        return f"{estimate}; no sweep of {config.name} in this store yet to tell the time by"
    rate_words = f"{rate:.0f} frames/s a trial, as in earlier sweeps of {config.name}"
    return f"{estimate}; about {_duration(frames / rate / config.at_once)} at {rate_words}"


def _frames_per_second(sweep: Sweep, store: Store) -> float | None:
    """Of earlier sweeps with this name, all they cost a trial included."""
    trials = store.table("trials")
    if trials.empty:
        return None
    runs = store.table("runs", where=f"kind == 'sweep' and name == {sweep.config.name!r}")
    ours = trials[trials["sweep"].isin(runs["run"]) & (trials["seconds"] > 0)]
    return float(ours["frames"].sum() / ours["seconds"].sum()) if len(ours) and ours["frames"].sum() else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _axis(axis: Axis) -> str:
    only = "; only when " + ", ".join(
        f"{field} is {' or '.join(map(str, labels))}" for field, labels in axis.conditions.items()
    )
    if axis.choice is not None:
        return "one of " + ", ".join(short(label) for label in axis.options) + (only if axis.when else "")
    kind = "log-uniform" if axis.loguniform else "uniform" if axis.uniform else "whole numbers"
    return f"{kind} from {axis.bounds[0]:g} to {axis.bounds[1]:g}" + (only if axis.when else "")


def short(label: Any) -> str:
    """A value as it is shown: four digits of a number, the beginning of a long text."""
    text = f"{label:.4g}" if isinstance(label, float) else str(label)
    return text if len(text) <= 40 else f"{text[:37]}..."
