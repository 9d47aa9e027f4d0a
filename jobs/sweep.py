"""`longtake sweep CONFIG`: many trainings over a space of configs, searched, stopped early, and compared.

Everything that can be refused is refused here, before the first trial: corners of the space that are no valid
training, a score that the dataset cannot serve, more trials at once than the machine holds. What a trial runs
is in `sweep_trial.py`. A sweep lives in the store as

    sweeps/ID/sweep.yaml      what was asked          sweeps/ID/study.journal    its trials (the truth)
    sweeps/ID/train.yaml      what the trials share   sweeps/ID/best.yaml        ready for `longtake train`

beside the table `trials`; each trial is a run like any other.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from evals.metrics import METRICS, MetricName
from evals.protocol import Protocol
from jobs import fvd, train
from jobs.protocol_check import protocol_problems
from jobs.train_config import WorldModelTraining
from longtake.config import Config, differences, dump, load, revise
from longtake.errors import UserError
from longtake.mixture import open_data
from longtake.runs import RunRecord, select
from longtake.search import Pruning, Sampling
from longtake.space import Axis, Label, corners, settings, size
from longtake.store import Store, open_store
from longtake.sweeps import SweepDemand

if TYPE_CHECKING:
    from longtake.study import Assignment, Study

CONFIGS = Path(__file__).parent / "configs" / "sweep"
Positive = Annotated[int, Field(ge=1)]
MAY_CHANGE = ("trials", "at_once")
"""Settings that a resume may give other values."""


class Objective(Config):
    """What is better, measured at every checkpoint of a trial: a memory score, or a column of `steps`."""

    protocol: Protocol | None = Field(None, description="a cheap one, on the val split")
    metric: MetricName = "psnr"
    beyond: int | None = Field(
        None, ge=0, description="only frames at larger distances; the largest window of the space when not given"
    )
    column: Literal["loss", "val_loss", "grad_norm", "frames_per_s"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.protocol is None) == (self.column is None):
            raise ValueError("give either a protocol to score, or a column of the table steps")
        if self.protocol is not None and self.protocol.split != "val":
            raise ValueError("protocol.split: a search may see the val split only: set split: val")
        if self.protocol is not None and fvd.METRIC in self.protocol.metrics:
            raise ValueError("protocol.metrics: fvd needs the clips of a whole evaluation; a trial is scored by frames")
        if self.protocol is not None and METRICS[self.metric].better == "zero":
            raise ValueError(f"metric: {self.metric} is best at 0; a search needs one that is best high or low")
        if self.protocol is not None and self.metric not in self.protocol.metrics:
            raise ValueError(f"metric: {self.metric} is not among protocol.metrics {self.protocol.metrics}")
        return self

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Speed is to be high, losses low, scores as their metric says."""
        high = METRICS[self.metric].better == "higher" if self.protocol is not None else self.column == "frames_per_s"
        return "maximize" if high else "minimize"

    @property
    def name(self) -> str:
        """In words."""
        if self.protocol is None:
            return str(self.column)
        return f"{self.protocol.task} {self.metric}"


class SweepConfig(Config):
    """One sweep, whole."""

    name: str = Field("sweep", pattern=r"^[a-zA-Z0-9_.-]+$")
    train: str = Field("tiny", description="the training that the trials vary: a shipped config or a YAML path")
    change: dict[str, Any] = Field({}, description="settings of that training that differ in all trials")
    space: Annotated[dict[str, Axis], Field(min_length=1)] = Field(description="axes by dotted field")
    trials: Positive
    at_once: Positive = 1
    sampling: Sampling = Sampling()
    pruning: Pruning = Pruning()
    objective: Objective


@dataclass(frozen=True)
class Sweep:
    """A sweep that may run: its id, what was asked, the training that its trials vary."""

    id: str
    config: SweepConfig
    base: WorldModelTraining

    def trial(self, labels: dict[str, Label], number: int | None = None) -> WorldModelTraining:
        """The training of one point of the space. Raises UserError for one that is not valid."""
        name = self.base.name if number is None else f"{self.config.name}-{number:03d}"
        return revise(self.base, {"name": name, **settings(self.config.space, labels)})

    @property
    def need(self) -> SweepDemand:
        """What it asks of the machine."""
        return SweepDemand(
            max(1, self.base.workers), gpus_per_worker=self.base.gpus_per_worker, at_once=self.config.at_once
        )


def main(config: str | None, overrides: list[str], store: str, dry_run: bool, resume: str | None = None) -> None:
    """The command: check, then sweep; with `dry_run` print the space and the arithmetic, and touch nothing."""
    where = open_store(store)
    if resume is None:
        sweep = new(load(SweepConfig, config or "blocks", overrides, search=CONFIGS))
    else:
        if config is not None:
            raise UserError(f"--resume {resume} goes on with that sweep's own config: leave out {config}")
        sweep = earlier(where, resume, overrides)
    sweep = check(sweep, where)
    if dry_run:
        print(dump(sweep.config) + "\n" + describe(sweep))
        return
    run(sweep, where)


def new(config: SweepConfig) -> Sweep:
    """A sweep that has not begun."""
    from longtake.provenance import new_run_id

    base = load(WorldModelTraining, config.train, search=train.CONFIGS)
    return Sweep(new_run_id(), config, revise(base, dict(_leaves(config.change))))


def earlier(store: Store, name: str, overrides: list[str]) -> Sweep:
    """A sweep of the store. Raises UserError for one that still runs, and for settings that may not change."""
    (sweep,) = select(store, name, kind="sweep")
    _refuse_alive(store, sweep)
    with _files(store, sweep) as folder:
        then = load(SweepConfig, folder / "sweep.yaml")
        now = load(SweepConfig, folder / "sweep.yaml", overrides)
        base = load(WorldModelTraining, folder / "train.yaml")
    changed = differences(then.model_dump(mode="json"), now.model_dump(mode="json"))
    fixed = [line for line in changed if line.split(":")[0] not in MAY_CHANGE]
    if fixed:
        raise UserError(*(f"resume: {line}; only {' and '.join(MAY_CHANGE)} may change" for line in fixed))
    return Sweep(sweep, now, base)


def check(sweep: Sweep, store: Store) -> Sweep:
    """Refuse what cannot run, all problems at once; returns the sweep with its objective's `beyond` settled.

    Raises:
        UserError: a field that a training does not have, corners of the space that are not valid, an objective
            that cannot be measured. Whether the machine holds the trials, `launch` asks.
    """
    problems: list[str] = []
    found: dict[str, str] = {}
    window = 0
    for labels in corners(sweep.config.space):
        try:
            config = sweep.trial(labels)
            train.check(config, store)
            problems += [] if problems else _objective_problems(sweep.config, config, store)
            window = max(window, *(config.model.layer_window(layer) for layer in config.model.layers))
        except UserError as error:
            at = ", ".join(f"{field}={label}" for field, label in labels.items())
            for line in error.lines:
                found.setdefault(line, at)
    problems += [f"space: {line} (for one at {at})" for line, at in found.items()]
    objective = sweep.config.objective
    beyond = window if objective.beyond is None else objective.beyond
    if objective.protocol is not None and not problems:
        problems += _beyond_problems(objective.protocol, beyond)
    if problems:
        raise UserError(*problems)
    if objective.protocol is None:
        return sweep
    settled = objective.model_copy(update={"beyond": beyond})
    return Sweep(sweep.id, sweep.config.model_copy(update={"objective": settled}), sweep.base)


def _objective_problems(config: SweepConfig, trial: WorldModelTraining, store: Store) -> list[str]:
    objective, problems = config.objective, []
    if config.pruning.method != "none" and config.pruning.first >= trial.steps:
        problems.append(f"pruning.first: {config.pruning.first} is not before the end of a trial ({trial.steps} steps)")
    if objective.column == "val_loss" and trial.checkpoint_every % trial.validation.every:
        problems.append(
            f"objective.column: val_loss is measured every {trial.validation.every} steps, but checkpoints are made "
            f"every {trial.checkpoint_every}: set change.checkpoint_every to a multiple of {trial.validation.every}"
        )
    if objective.protocol is not None:
        dataset = store.dataset(trial.data.first)
        problems += [f"objective.protocol: {line}" for line in protocol_problems(objective.protocol, dataset)]
    return problems


def _beyond_problems(protocol: Protocol, beyond: int) -> list[str]:
    from evals.tasks import TASKS

    _, distances = TASKS[protocol.task].path(protocol)
    if (distances > beyond).any():
        return []
    return [
        f"objective.beyond: no frame of the protocol lies beyond {beyond} frames (the largest window of the space "
        f"unless given); the farthest lies at {distances.max()}: set objective.protocol.horizon higher"
    ]


def describe(sweep: Sweep) -> str:
    """The space and the plan in words."""
    from longtake.cluster import machine_cpus

    config, base = sweep.config, sweep.base
    points = size(config.space)
    need, pruning = sweep.need, config.pruning
    each = need.cpus_per_worker + need.data_cpus_per_worker
    lines = ["space"] + [f"  {field:<28}{_axis(axis)}" for field, axis in config.space.items()]
    rungs = f", from step {pruning.first} on" if pruning.method != "none" else ""
    frames = config.trials * base.steps * base.data.frames_per_step
    return "\n".join(
        [
            *lines,
            f"points     {'infinitely many' if points is None else points}",
            f"trials     {config.trials} x {base.steps} steps, at most {frames:,} frames; {config.at_once} at once",
            f"search     {config.sampling.method}, seed {config.sampling.seed}; pruning: {pruning.method}{rungs}",
            f"objective  {config.objective.name}, {config.objective.direction}, every {base.checkpoint_every} steps"
            + (f", at distances beyond {config.objective.beyond}" if config.objective.protocol else ""),
            f"machine    {config.at_once} trials x {need.workers} workers x {each:g} CPUs = "
            f"{config.at_once * need.workers * each:g} of {machine_cpus()} CPUs"
            + (f", {config.at_once * need.workers * need.gpus_per_worker:g} GPUs" if need.gpus_per_worker else ""),
            *(f"too much   {line}" for line in need.problems(machine_cpus(), math.inf)),
        ]
    )


def run(sweep: Sweep, store: Store) -> str:
    """Run a checked sweep to its end and return its id; one that was interrupted goes on."""
    from jobs.sweep_trial import run_trial
    from longtake import sweeps
    from longtake.cluster import launch

    config, base = sweep.config, sweep.base
    # Nested trials: the dashboard's process cleans up after a trial that is killed before it can do so itself.
    with launch(sweep.need, dashboard=sweep.need.nested), _record(sweep, store):
        print(f"{config.name}: sweep {sweep.id}", flush=True)
        study = open_study(sweep, store)
        sweeps.run(
            study,
            run_trial,
            (store, sweep),
            trials=config.trials,
            need=sweep.need,
            max_failures=base.max_failures,
            on_event=_teller(config, study),
        )
    _finish(sweep, store, study)
    return sweep.id


def _record(sweep: Sweep, store: Store) -> RunRecord:
    """The sweep's row in `runs`, after its configs: what the table shows can be resumed."""
    store.write_bytes(f"sweeps/{sweep.id}/sweep.yaml", dump(sweep.config).encode())
    store.write_bytes(f"sweeps/{sweep.id}/train.yaml", dump(sweep.base).encode())
    dataset = open_data(store, sweep.base.data.dataset)
    return RunRecord.start(
        store,
        sweep.id,
        kind="sweep",
        name=sweep.config.name,
        config=sweep.config,
        dataset=dataset.fingerprint,
        seed=sweep.config.sampling.seed,
        dataset_name=sweep.base.data.first,
    )


def open_study(sweep: Sweep, store: Store) -> Study:
    """The study of a sweep; a new one if it has none."""
    from longtake.study import Study

    return Study(
        store,
        sweep.id,
        sweep.config.space,
        steps=sweep.base.steps,
        direction=sweep.config.objective.direction,
        sampling=sweep.config.sampling,
        pruning=sweep.config.pruning,
    )


def _teller(config: SweepConfig, study: Study) -> Callable[[Study], None]:
    """Prints a line as each trial ends, from now on."""
    told = {row["trial"] for row in study.rows() if row["state"] != "running"}
    if len(study):
        print(f"of {len(study)} trials that have begun, {len(told)} have ended; the others go on", flush=True)

    def tell(study: Study) -> None:
        for row in study.rows():
            if row["state"] == "running" or row["trial"] in told:
                continue
            told.add(row["trial"])
            point = ", ".join(f"{field}={_short(row[field])}" for field in config.space)
            print(
                f"trial {row['trial']:>3}  {row['state']:<7} step {row['step']:>6}  {row['objective']:.4f}  "
                f"{row['seconds']:.0f} s  {point}  {row['reason']}".rstrip(),
                flush=True,
            )

    return tell


def _finish(sweep: Sweep, store: Store, study: Study) -> None:
    """Write the best config and say where it lies."""
    rows = study.rows()
    counts = {state: sum(row["state"] == state for row in rows) for state in ("done", "pruned", "failed")}
    print("trials: " + ", ".join(f"{number} {state}" for state, number in counts.items()), flush=True)
    best = study.best()
    if best is None:
        why = f"longtake results trials --where \"sweep == '{sweep.id}'\""
        raise UserError(f"sweep {sweep.id}: no trial was done; see the reasons: {why}")
    value = rows[best.number]["objective"]
    rel = f"sweeps/{sweep.id}/best.yaml"
    store.write_bytes(rel, best_yaml(sweep, best, value).encode())
    print(f"best: trial {best.number} (run {best.run}), {sweep.config.objective.name} {value:.4f}")
    hint = f"longtake train {store.uri}/{rel} --store {store.uri}"
    print(hint if store.is_folder else f"its config: {store.uri}/{rel} (copy it here for `longtake train`)")


def best_yaml(sweep: Sweep, best: Assignment, value: float) -> str:
    """The winner's training config as a file."""
    config = sweep.trial(best.labels, best.number)
    point = "".join(f"#   {field} = {_short(label)}\n" for field, label in best.labels.items())
    reached = f"{sweep.config.objective.name} {value:.4f} at step {config.steps}"
    head = f"# Best of sweep {sweep.id}: trial {best.number}, {reached}\n"
    return head + point + dump(config)


def _refuse_alive(store: Store, sweep: str) -> None:
    """Two drivers of one sweep would run its trials twice."""
    row = store.table("runs", where=f"run == {sweep!r}").to_dict("records")[0]
    if row["status"] != "running":
        return
    here = row["host"] == os.uname().nodename
    if here and not Path(f"/proc/{int(row['pid'])}").exists():
        return
    silent = time.time() - row["event_time"].timestamp()
    raise UserError(
        f"sweep {sweep} is running (process {row['pid']} on {row['host']}, last heard {silent:.0f} s ago); "
        "if it was killed, try again in a minute"
    )


@contextlib.contextmanager
def _files(store: Store, sweep: str) -> Iterator[Path]:
    """The two configs of a sweep as local files."""
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        for name in ("sweep.yaml", "train.yaml"):
            (Path(folder) / name).write_bytes(store.read_bytes(f"sweeps/{sweep}/{name}"))
        yield Path(folder)


def _leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted field and value of everything in nested sections."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _axis(axis: Axis) -> str:
    if axis.choice is not None:
        return "one of " + ", ".join(_short(label) for label in axis.options)
    kind = "log-uniform" if axis.loguniform else "uniform" if axis.uniform else "whole numbers"
    return f"{kind} from {axis.bounds[0]:g} to {axis.bounds[1]:g}"


def _short(label: Any) -> str:
    text = f"{label:.4g}" if isinstance(label, float) else str(label)
    return text if len(text) <= 40 else f"{text[:37]}..."
