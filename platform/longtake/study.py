"""The search of a sweep: an Optuna study whose journal in the store is the one truth about its trials.

    sweeps/ID/study.journal     Optuna's own format: optuna-dashboard opens it

What to try next is a pure function of the trials so far and of (seed, trial number), and whether to prune is
one of the trials so far: a sweep that was killed goes on as if it had not been. The table `trials` is written
from the study, whole, at every event, so the two cannot disagree.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from longtake import tables
from longtake.provenance import new_run_id
from longtake.search import Pruning, Sampling
from longtake.space import Axis, Label, Space

if TYPE_CHECKING:
    from longtake.store import Store

Direction = Literal["maximize", "minimize"]
STATES = {"RUNNING": "running", "COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class Assignment:
    """One trial as whoever runs it needs it: its number, its run, and a label per axis."""

    number: int
    run: str
    labels: dict[str, Label]


class Study:
    """The trials of one sweep. One process holds it; every change is in the store when the call returns."""

    def __init__(
        self,
        store: Store,
        sweep: str,
        space: Space,
        *,
        steps: int,
        direction: Direction,
        sampling: Sampling,
        pruning: Pruning,
    ) -> None:
        """`steps`: length of a whole trial. A study that is there already is gone on with."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.store, self.sweep, self.steps, self.direction = store, sweep, steps, direction
        self._sampling = sampling
        self._axes = {field: _distribution(axis) for field, axis in space.items()}
        self._journal = Journal(store, f"sweeps/{sweep}/study.journal")
        self._storage = JournalStorage(self._journal)
        self._pruner = _pruner(pruning)
        self._seconds: dict[int, float] = {}
        with self._saved():
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=sweep,
                direction=direction,
                load_if_exists=True,
                pruner=self._pruner,
            )

    def ask(self) -> Assignment:
        """A new trial."""
        with self._saved():
            number = len(self._trials())
            # A sampler per trial: its random state depends on the number only, not on who asked before.
            self._study.sampler = _sampler(self._sampling, number)
            trial = self._study.ask(fixed_distributions=self._axes)
            trial.set_user_attr("run", new_run_id())
        return self._assignment(self._frozen(number))

    def unfinished(self) -> list[Assignment]:
        """Trials that have begun and not ended, by number."""
        return [self._assignment(t) for t in self._trials() if t.state == TrialState.RUNNING]

    def __len__(self) -> int:
        return len(self._trials())

    def report(self, number: int, step: int, value: float, *, frames: int, seconds: float) -> bool:
        """Note the objective at a step; False if the trial is to end here (pruned, or not a number).

        `seconds`: since this session of the trial began. A step that is reported again changes nothing but
        the verdict. The report and its verdict are saved together.
        """
        with self._saved():
            trial = self._frozen(number)
            if trial.state != TrialState.RUNNING:
                return False
            if not math.isfinite(value):
                self._end(number, TrialState.FAIL, f"the objective is {value} at step {step}")
                return False
            if step not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
            self._note(trial, step=step, frames=frames, seconds=self._spent(trial, seconds))
            trial = self._frozen(number)
            if step < self.steps and self._pruner.prune(self._study, trial):
                self._end(number, TrialState.PRUNED, "")
                return False
            return True

    def finish(self, number: int, reason: str = "") -> None:
        """A trial has ended: done, or failed for a reason. One that had ended before stays as it is."""
        with self._saved():
            trial = self._frozen(number)
            if trial.state != TrialState.RUNNING:
                return
            if not reason and trial.last_step != self.steps:
                reason = f"it ended at step {trial.last_step} of {self.steps}"
            self._end(number, TrialState.FAIL if reason else TrialState.COMPLETE, reason)

    def best(self) -> Assignment | None:
        """The done trial with the best objective; the earlier one of equals."""
        done = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        sign = 1 if self.direction == "maximize" else -1
        best = max(done, key=lambda trial: sign * _value(trial), default=None)
        return None if best is None else self._assignment(best)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table `trials`: state, objective, costs, and a column per axis."""
        return [self._row(trial) for trial in self._trials()]

    def write(self) -> None:
        """Write the table `trials`."""
        tables.append(self.store, "trials", self.rows(), part=self.sweep)

    # --- inside --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _saved(self) -> Iterator[None]:
        """One event: journal first, for it is the truth, then the table."""
        with self._journal.together():
            yield
        if len(self._study.get_trials(deepcopy=False)):
            self.write()

    def _end(self, number: int, state: TrialState, reason: str) -> None:
        trial = self._frozen(number)
        self._note(trial, reason=reason)
        value = _value(trial) if state == TrialState.COMPLETE else None
        self._study.tell(number, value, state)

    def _note(self, trial: FrozenTrial, **attributes: Any) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _spent(self, trial: FrozenTrial, seconds: float) -> float:
        """Seconds of all sessions: a clock that went back belongs to a new one."""
        last = self._seconds.get(trial.number, 0.0)
        self._seconds[trial.number] = seconds
        before = float(trial.user_attrs.get("seconds", 0.0))
        return before + (seconds - last if seconds >= last else seconds)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def _assignment(self, trial: FrozenTrial) -> Assignment:
        return Assignment(trial.number, trial.user_attrs["run"], dict(trial.params))

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        attributes = trial.user_attrs
        return {
            "sweep": self.sweep,
            "trial": trial.number,
            "run": attributes["run"],
            "state": STATES[trial.state.name],
            "reason": attributes.get("reason", ""),
            "objective": _value(trial),
            "better": "higher" if self.direction == "maximize" else "lower",
            "step": attributes.get("step", 0),
            "frames": attributes.get("frames", 0),
            "seconds": float(attributes.get("seconds", 0.0)),
            **trial.params,
        }


class Journal(BaseJournalBackend):
    """Optuna's journal in a store: lines of JSON, one writer.

    What is appended within `together` is one write. `left` counts the lines of a write that follow, so that
    what a power cut tore off is known when it is read, and the whole write did not happen.
    """

    def __init__(self, store: Store, rel: str) -> None:
        self._store, self._rel = store, rel
        self._logs: list[dict[str, Any]] = []
        self._saved = 0
        self._depth = 0
        if store.exists(rel):
            self._read()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The logs from a number on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add logs; they are in the store when the outermost `together` ends."""
        with self.together():
            self._logs += logs

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Everything that is appended inside is written at once."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._saved < len(self._logs):
                self._write()

    def _write(self) -> None:
        new = self._logs[self._saved :]
        for left, log in enumerate(reversed(new)):
            log["left"] = left
        if self._store.is_folder and self._saved:
            with Path(self._store.path(self._rel)).open("ab") as file:
                file.write(_lines(new))
                file.flush()
                os.fsync(file.fileno())
        else:
            self._store.write_bytes(self._rel, _lines(self._logs))
        self._saved = len(self._logs)

    def _read(self) -> None:
        whole = self._store.read_bytes(self._rel)
        for line in whole.split(b"\n")[:-1]:
            try:
                self._logs.append(json.loads(line))
            except json.JSONDecodeError:
                break
        while self._logs and self._logs[-1].get("left"):
            self._logs.pop()
        self._saved = len(self._logs)
        if _lines(self._logs) != whole:
            self._store.write_bytes(self._rel, _lines(self._logs))


def _lines(logs: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()


def _value(trial: FrozenTrial) -> float:
    """The newest objective of a trial; not a number before the first."""
    step = trial.last_step
    return math.nan if step is None else trial.intermediate_values[step]


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.choice is not None:
        return CategoricalDistribution(list(axis.options))
    low, high = axis.bounds
    if axis.integer is not None:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=axis.loguniform is not None)


def _sampler(sampling: Sampling, number: int) -> optuna.samplers.BaseSampler:
    import numpy as np

    seed = int(np.random.SeedSequence([sampling.seed, number]).generate_state(1)[0])
    if sampling.method == "random":
        return optuna.samplers.RandomSampler(seed)
    with warnings.catch_warnings():
        # Several of these are marked experimental, as they have been for years.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=sampling.startup
        )


def _pruner(pruning: Pruning) -> optuna.pruners.BasePruner:
    if pruning.method == "none":
        return optuna.pruners.NopPruner()
    if pruning.method == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=pruning.first - 1)
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=pruning.first, reduction_factor=pruning.factor, bootstrap_count=0
    )
