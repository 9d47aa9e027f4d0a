"""The search of a sweep: an Optuna study, in the store's journal or a database, the one truth about its trials.

    sweeps/ID/study.journal     Optuna's own format: optuna-dashboard opens it

What to try next is a pure function of the trials so far and of (seed, trial number), and whether to prune is
one of the trials so far: a sweep that was killed goes on as if it had not been. The table `trials` is written
from the study, whole, at every event, so the two cannot disagree.

A trial that is tried again is another trial to Optuna, and the same one to everybody else: it keeps its number and
its run. Trials of earlier sweeps are in the study for the sampler only.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from longtake.errors import UserError
from longtake.provenance import new_run_id
from longtake.tables import table as tables
from longtake.tuning import optuna_adapters
from longtake.tuning.optuna_journal import StoreJournalBackend
from longtake.tuning.search_config import Pruning, Sampling
from longtake.tuning.space import Label, Space, active, points, size
from longtake.tuning.study_check import replayed, require_all_known

if TYPE_CHECKING:
    from longtake.storage.lease import Lease
    from longtake.storage.store import Store

Direction = Literal["maximize", "minimize"]
STATES = {"RUNNING": "running", "COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
CARRIED = ("step", "frames", "seconds", "costs")
"""What a trial that is tried again keeps of what it was, beside its run."""


@dataclass(frozen=True)
class Assignment:
    """One trial as whoever runs it needs it: its number, its run, and a label per axis that counts."""

    number: int
    run: str
    labels: dict[str, Label]


class Study:
    """The trials of one sweep. One process holds it; every change is kept when the call returns."""

    def __init__(
        self,
        store: Store | None,
        sweep: str,
        space: Space,
        *,
        steps: int,
        direction: Direction,
        sampling: Sampling,
        pruning: Pruning,
        against: Sequence[str] = (),
        database: str | None = None,
        lease: Lease | None = None,
    ) -> None:
        """A study that is there already is gone on with.

        Args:
            store: keeps the journal and the table; with none, nothing is kept: to replay what is known.
            steps: length of a whole trial.
            direction: of the objective, which alone prunes and tells the best.
            against: costs to weigh it against, all of them the better the lower.
            database: Optuna's URL of where the trials are kept instead of the journal.
            lease: of the sweep: who has lost it writes nothing.

        Raises:
            UserError: the database cannot be opened; the journal is damaged, or knows less than the table.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.store, self.sweep, self.steps, self.direction = store, sweep, steps, direction
        self.against = tuple(against)
        self._space, self._sampling, self._points = space, sampling, size(space)
        self._axes = {field: optuna_adapters.distribution(axis) for field, axis in space.items()}
        self._lease = lease
        journal = f"sweeps/{sweep}/study.journal"
        self._journal = StoreJournalBackend(store, journal, self._require_lease) if store and not database else None
        self._pruner = optuna_adapters.pruner(pruning, steps)
        self._seconds: dict[int, float] = {}
        self._live: set[int] = set()
        self._storage: BaseStorage = replayed(self._journal) if self._journal else InMemoryStorage()
        if database:
            self._storage = optuna_adapters.database(database)
        exists = sweep in optuna.get_all_study_names(self._storage)
        if exists:
            self._study = optuna.load_study(study_name=sweep, storage=self._storage)
        torn = self._journal is not None and self._journal.is_torn
        require_all_known(store, sweep, self._trials() if exists else [], torn)
        with self._saved():
            if not exists:
                self._study = self._begin()
            self._mend()

    def ask(self) -> Assignment:
        """A new trial, at a point that none of this sweep's has been at: it would only end as that one did.

        Raises:
            UserError: there is no other point.
        """
        number = len(self)
        if self._points is not None and number >= self._points:
            raise UserError(f"sweep {self.sweep}: all {self._points} points of its space have been tried")
        with self._saved():
            if self._sampling.method == "grid":
                point = next(itertools.islice(points(self._space), number, None))
                self._add(TrialState.RUNNING, point, {"run": new_run_id()})
            else:
                self._suggest(number, self._study.ask()._trial_id)
            return self._taken(number)

    def unfinished(self) -> list[Assignment]:
        """Trials that have begun and not ended, by number."""
        return [self._assignment(n) for n, trial in enumerate(self._trials()) if trial.state == TrialState.RUNNING]

    def take(self, given: Assignment) -> Assignment:
        """Note that an unfinished trial goes on here and now: from preempted to running."""
        with self._saved():
            return self._taken(given.number)

    def release(self) -> None:
        """Nobody runs anything now: what has not ended is preempted."""
        with self._saved():
            self._live.clear()

    def retry(self) -> list[int]:
        """Let trials that crashed go on from their checkpoints; their numbers.

        A trial whose objective was no number, or whose config is at fault, would only fail again.
        """
        with self._saved():
            crashed = [n for n, trial in enumerate(self._trials()) if trial.user_attrs.get("crashed")]
            for number in crashed:
                trial = self._trials()[number]
                kept = {name: trial.user_attrs[name] for name in CARRIED if name in trial.user_attrs}
                attempt = trial.user_attrs.get("attempt", 1) + 1
                about = {**kept, "run": trial.user_attrs["run"], "retry_of": number, "attempt": attempt}
                rungs = dict(trial.system_attrs)
                self._add(TrialState.RUNNING, trial.params, about, trial.intermediate_values, rungs)
                self._live.discard(number)
        return crashed

    def observe(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Learn from rows of the table `trials` of earlier sweeps; how many are of this space and new.

        Their objective must mean the same, at the same length of a trial.
        """
        known = {trial.user_attrs.get("warm") for trial in self._study.get_trials(deepcopy=False)}
        before = len(known)
        with self._saved():
            for row in rows:
                name, labels = f"{row['sweep']}/{row['trial']}", self._labels_of(row)
                costs = [float(row.get(cost) or math.nan) for cost in self.against]
                values = [float(row["objective"]), *costs]
                if name in known or labels is None or not all(map(math.isfinite, values)):
                    continue
                whole = row["state"] == "done" and row["step"] == self.steps
                if whole or (row["state"] == "pruned" and not self.against):
                    state = TrialState.COMPLETE if whole else TrialState.PRUNED
                    known.add(name)
                    self._add(state, labels, {"warm": name}, {int(row["step"]): values[0]}, values=values)
        return len(known) - before

    def __len__(self) -> int:
        return len(self._trials())

    def report(
        self,
        number: int,
        step: int,
        value: float,
        *,
        frames: int,
        seconds: float,
        costs: Mapping[str, float] | None = None,
    ) -> bool:
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
            spent = self._spent(trial, seconds)
            self._note(trial, step=step, frames=frames, seconds=spent, costs=dict(costs or {}))
            if step < self.steps and self._pruner.prune(_One(self), self._frozen(number)):  # type: ignore[arg-type]
                self._end(number, TrialState.PRUNED, "")
                return False
            return True

    def finish(self, number: int, reason: str = "", *, crashed: bool = True) -> None:
        """A trial has ended: done, or failed for a reason. One that had ended before stays as it is.

        `crashed`: whether it might do better when it is tried again.
        """
        with self._saved():
            trial = self._frozen(number)
            if trial.state != TrialState.RUNNING:
                return
            if not reason and trial.last_step != self.steps:
                reason = f"it ended at step {trial.last_step} of {self.steps}"
            if reason and crashed:
                self._note(trial, crashed=True)
            self._end(number, TrialState.FAIL if reason else TrialState.COMPLETE, reason)

    def best(self, most: int = 1) -> list[Assignment]:
        """The done trials with the best objectives, the best first; of equals the earlier one."""
        sign = -1 if self.direction == "maximize" else 1
        done = [(sign * _value(t), n) for n, t in enumerate(self._trials()) if t.state == TrialState.COMPLETE]
        return [self._assignment(number) for _, number in sorted(done)[:most]]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table `trials`: state, objective, costs, and a column per axis."""
        return [self._row(number, trial) for number, trial in enumerate(self._trials())]

    def write(self) -> None:
        """Write the table `trials`."""
        if self.store is not None:
            tables.append(self.store, "trials", self.rows(), part=self.sweep)

    def curves(self) -> list[dict[int, float]]:
        """Of every trial the objective by step."""
        return [dict(trial.intermediate_values) for trial in self._trials()]

    # --- inside --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _saved(self) -> Iterator[None]:
        """One event: the study first, for it is the truth, then the table."""
        self._require_lease()
        with self._journal.together() if self._journal else contextlib.nullcontext():
            yield
        if len(self):
            self.write()

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()

    def _begin(self) -> optuna.Study:
        """A study without trials."""
        directions: list[Direction | StudyDirection] = [self.direction]
        directions += [StudyDirection.MINIMIZE for _ in self.against]
        return optuna.create_study(storage=self._storage, study_name=self.sweep, directions=directions)

    def _suggest(self, number: int, trial_id: int) -> None:
        """Give a new trial its labels and its run; where no point is left for it, it has failed."""
        trial = self._storage.get_trial(trial_id)
        tried = [earlier.params for earlier in self._trials()[:number]]
        labels = optuna_adapters.untried(self._study, trial, self._sampling, number, self._space, tried)
        for field, label in (labels or {}).items():
            axis = self._axes[field]
            if field not in trial.params:
                self._storage.set_trial_param(trial_id, field, axis.to_internal_repr(label), axis)
        self._storage.set_trial_user_attr(trial_id, "run", new_run_id())
        if labels is None:
            self._end(number, TrialState.FAIL, "no point of the space is left for it")

    def _mend(self) -> None:
        """A database may hold a trial that was killed while it was made: make it whole, as it would have been."""
        for number, trial in enumerate(self._trials()):
            if "run" not in trial.user_attrs:
                self._suggest(number, trial._trial_id)

    def _add(
        self,
        state: TrialState,
        labels: Mapping[str, Label],
        about: dict[str, Any],
        reported: Mapping[int, float] | None = None,
        system: dict[str, Any] | None = None,
        values: Sequence[float] | None = None,
    ) -> None:
        self._study.add_trial(
            create_trial(
                state=state,
                params=dict(labels),
                distributions={field: self._axes[field] for field in labels},
                user_attrs=about,
                system_attrs=system,
                intermediate_values=dict(reported or {}),
                values=values if state == TrialState.COMPLETE else None,
            )
        )

    def _labels_of(self, row: Mapping[str, Any]) -> dict[str, Label] | None:
        """The point of this space that a row of an earlier sweep is; None if it is none."""
        labels: dict[str, Label] = {}
        for field, axis in self._space.items():
            if not active(self._space, field, labels):
                continue
            label = optuna_adapters.label_of(axis, row.get(field))
            if label is None:
                return None
            labels[field] = label[0]
        return labels

    def _end(self, number: int, state: TrialState, reason: str) -> None:
        trial = self._frozen(number)
        costs = trial.user_attrs.get("costs", {})
        missing = [name for name in self.against if not math.isfinite(costs.get(name, math.nan))]
        if state == TrialState.COMPLETE and missing:
            state, reason = TrialState.FAIL, f"it did not tell {', '.join(missing)}"
        self._note(trial, reason=reason)
        if state == TrialState.PRUNED and self.against:
            # Optuna knows no pruned trials of several objectives: to its samplers this one has never been.
            state = TrialState.FAIL
            self._note(trial, pruned=True)
        values = [_value(trial), *(costs[name] for name in self.against)] if state == TrialState.COMPLETE else None
        self._study.tell(trial.number, values, state)

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
        """This sweep's trials by number, each as its last attempt."""
        newest: list[FrozenTrial] = []
        for trial in self._study.get_trials(deepcopy=False):
            if "retry_of" in trial.user_attrs:
                newest[trial.user_attrs["retry_of"]] = trial
            elif "warm" not in trial.user_attrs:
                newest.append(trial)
        return newest

    def _frozen(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def _taken(self, number: int) -> Assignment:
        self._live.add(number)
        return self._assignment(number)

    def _assignment(self, number: int) -> Assignment:
        trial = self._frozen(number)
        return Assignment(number, trial.user_attrs["run"], dict(trial.params))

    def _row(self, number: int, trial: FrozenTrial) -> dict[str, Any]:
        attributes, costs = trial.user_attrs, trial.user_attrs.get("costs", {})
        state = "pruned" if attributes.get("pruned") else STATES[trial.state.name]
        return {
            "sweep": self.sweep,
            "trial": number,
            "run": attributes["run"],
            "state": "preempted" if state == "running" and number not in self._live else state,
            "reason": attributes.get("reason", ""),
            "attempts": attributes.get("attempt", 1),
            "objective": _value(trial),
            "final": _value(trial) if state == "done" else math.nan,
            "better": "higher" if self.direction == "maximize" else "lower",
            **{name: costs.get(name, math.nan) for name in self.against},
            "step": attributes.get("step", 0),
            "frames": attributes.get("frames", 0),
            "seconds": float(attributes.get("seconds", 0.0)),
            **{field: trial.params.get(field) for field in self._axes},
        }


class _One:
    """The study as a pruner sees it: of the objective alone, a trial that was tried again once."""

    def __init__(self, study: Study) -> None:
        self._own, self._storage = study, study._storage
        self.direction = StudyDirection.MAXIMIZE if study.direction == "maximize" else StudyDirection.MINIMIZE

    def get_trials(self, deepcopy: bool = True, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        """As Optuna's own."""
        return [trial for trial in self._own._trials() if states is None or trial.state in states]


def _value(trial: FrozenTrial) -> float:
    """The newest objective of a trial; not a number before the first."""
    return math.nan if trial.last_step is None else trial.intermediate_values[trial.last_step]
