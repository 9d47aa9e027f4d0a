"""What a report is about: the asked runs, and of each task the scores that may stand side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from longtake.config import load
from longtake.errors import UserError
from longtake.jobs.evaluate.config import CONFIGS, EvaluateConfig
from longtake.jobs.plots.base import distinct
from longtake.tables import find
from longtake.tables.schema import NO_RUN
from longtake.tables.scores import definition

if TYPE_CHECKING:
    import pandas as pd

    from longtake.evals.protocol import Protocol
    from longtake.evals.task import ReportPlace
    from longtake.models.config import ModelConfig
    from longtake.storage.store import Store

BEST_TRIALS = 3
"""Of a sweep, whose runs the page shows as it shows those that were asked for."""


@dataclass(frozen=True)
class Run:
    """A run's row, its config, and how the page calls it (told apart where two runs share a name)."""

    id: str
    name: str
    row: dict[str, Any]
    config: dict[str, Any]

    @property
    def model(self) -> ModelConfig | None:
        """Its world model; None where it trained none."""
        from longtake.models.config import ModelConfig

        model = self.config.get("model", {})
        return ModelConfig.model_validate_json(json.dumps(model)) if "layers" in model else None


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task under one protocol; its definition and shipped config, where known."""

    task: str
    protocol: str
    definition: Protocol | None
    config: str | None
    scores: pd.DataFrame


@dataclass(frozen=True)
class SweepTrials:
    """A sweep, how the page calls it, its rows of the table `trials`, and how many of its runs the page is about."""

    id: str
    name: str
    trials: pd.DataFrame
    shown: int


@dataclass(frozen=True)
class Profile:
    """A profile of the model of some of the runs: its rows of the table `bench`, and the names of those runs."""

    id: str
    runs: list[str]
    bench: pd.DataFrame


@dataclass(frozen=True)
class Material:
    """Everything a report shows, before it is drawn."""

    store: Store
    runs: list[Run]
    tasks: list[TaskScores]
    steps: pd.DataFrame
    sweeps: list[SweepTrials] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    """Ids of the runs and sweeps that the page was asked for."""
    notes: list[str] = field(default_factory=list)

    @property
    def window(self) -> int:
        """How far the windows of its models reach."""
        return windows_reach(self.runs)


def windows_reach(runs: Iterable[Run]) -> int:
    """Frames that the windows of some runs' models reach back, layer upon layer; 0 where none has a window.

    Of models that carry more than windows, where there are such: what lies beyond their own reach, only that can know.
    """
    from longtake.models.analysis.reach import window_reach

    models = [run.model for run in runs if run.model is not None]
    carrying = [model for model in models if any(layer.mixer != "none" for layer in model.stack)]
    reach = max((window_reach(model) for model in carrying or models), default=0)
    return reach if reach > 1 else 0


def gather(store: Store, runs: Sequence[str]) -> Material:
    """Read the tables.

    Raises:
        UserError: an unknown run, or runs that were scored on a task under different protocols only.
    """
    notes: list[str] = []
    rows = find.find_runs(store, runs, (*find.TRAININGS, *find.SWEEPS))
    sweeps, shown = open_sweeps(store, rows)
    trainings = find_runs(store, shown) if shown else []
    ids = [run.id for run in trainings]
    scores = _whole(store.table("scores", where=f"run in {[*ids, NO_RUN]!r}"), notes)
    scores = scores[~scores.task.isin(_uncurved())]
    tasks = choose_scores(store, scores, trainings, notes) if len(scores) else []
    if not tasks and not sweeps:
        command = f"longtake evaluate --runs {','.join(ids)} --store {store.argument}"
        notes.append(f"There are no scores to show yet: {command}")
    steps = store.table("steps", where=f"run in {ids!r}")
    named = [str(row["run"]) for row in rows]
    return Material(store, trainings, tasks, steps, sweeps, find_profiles(store, trainings), named, notes)


def report_place(task: str) -> ReportPlace:
    """What a page shows of a task; also of one whose file is gone from evals/tasks/, and whose rows are still there."""
    from longtake.evals.registry import TASKS
    from longtake.evals.task import ReportPlace

    return TASKS[task].report if task in TASKS else ReportPlace()


def _uncurved() -> list[str]:
    """Tasks that measure in their own way, whose rows are no frames: `longtake results scores` shows them."""
    from longtake.evals.registry import TASKS

    return [name for name, task in TASKS.items() if task.metrics]


def _whole(scores: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows that are not of some of a protocol's episodes only."""
    if "partial" not in scores or scores.partial.isna().all():
        return scores
    some = scores[scores.partial.notna()]
    for task, group in some.groupby("task", observed=True):
        count = int(group.partial.max())
        notes.append(f"{task}: scores of {count} episodes only (--limit {count}) are a look, not a result: left out.")
    return scores[scores.partial.isna()]


def open_sweeps(store: Store, rows: Sequence[find.Row]) -> tuple[list[SweepTrials], list[str]]:
    """The sweeps among the runs; and the ids of what to show of all: in a sweep's place the runs of its best trials."""
    opened, shown = [], list[str]()
    for row in rows:
        run = str(row["run"])
        if row["kind"] not in find.SWEEPS:
            shown.append(run)
            continue
        trials = store.table("trials", where=f"sweep == {run!r}")
        best = _best_trials(trials, set(store.table("runs", columns=["run"]).run))
        opened.append(SweepTrials(run, str(row["name"]), trials, len(best)))
        shown += best
    return opened, shown


def _best_trials(trials: pd.DataFrame, known: set[str]) -> list[str]:
    """The runs of the best done trials, the best first."""
    if not len(trials):
        return []
    done = trials[(trials.state == "done") & trials.run.isin(known)]
    ranked = done.sort_values("objective", ascending=bool((done.better != "higher").all()), kind="stable")
    return [str(run) for run in ranked.run.head(BEST_TRIALS)]


def find_profiles(store: Store, runs: Sequence[Run]) -> list[Profile]:
    """The newest profile of the model of each run, where there is one."""
    bench = store.table("bench", columns=["run"])
    if not len(bench):
        return []
    table = store.table("runs", where=f"kind == 'profile' and run in {sorted(set(bench.run))!r}")
    names_of: dict[str, list[str]] = {}
    for run in runs:
        for row in table.sort_values("run", ascending=False).itertuples():
            if yaml.safe_load(str(row.config)).get("model") == run.config.get("model"):
                names_of.setdefault(str(row.run), []).append(run.name)
                break
    rows = store.table("bench", where=f"run in {list(names_of)!r}") if names_of else None
    return [] if rows is None else [Profile(run, names, rows[rows.run == run]) for run, names in names_of.items()]


def find_runs(store: Store, runs: Sequence[str]) -> list[Run]:
    """The trainings that are meant by some names, each once.

    Raises:
        UserError: a name that is of none.
    """
    return _named(find.find_runs(store, runs))


def known_runs(store: Store, runs: Iterable[str]) -> list[Run]:
    """Those of these runs that are trainings of this store; others have no name to call them by."""
    table = store.table("runs", where=f"run in {sorted(runs)!r} and kind in {list(find.TRAININGS)!r}")
    return _named(table.to_dict("records"))


def _named(rows: Sequence[Mapping[Any, Any]]) -> list[Run]:
    """The runs of some rows of the table, by name, those of one name told apart."""
    names = [str(row["name"]) for row in rows]
    named = []
    for row, name in zip(rows, names, strict=True):
        run, config = str(row["run"]), yaml.safe_load(str(row.get("config") or "{}"))
        told_apart = f"{name} {run[-4:]}" if names.count(name) > 1 else name
        named.append(Run(run, told_apart, {str(key): value for key, value in row.items()}, config))
    return named


def choose_scores(store: Store, scores: pd.DataFrame, runs: Sequence[Run], notes: list[str]) -> list[TaskScores]:
    """Of each task the newest protocol that all runs share; what is left out is told in `notes`.

    Raises:
        UserError: runs were scored on a task, but share no protocol.
    """
    chosen, problems = [], []
    scored = {str(task) for task in scores.task[scores.run != NO_RUN].unique()}
    for task in sorted(scored, key=lambda name: (report_place(name).rank, name)):
        rows = scores[scores.task == task]
        per_run = {run.id: set(rows.protocol[rows.run == run.id].astype(str)) for run in runs}
        without = [run for run, protocols in per_run.items() if not protocols]
        if without:
            notes.append(f"{task} is left out: {', '.join(without)} was not scored on it.")
            continue
        shared = set.intersection(*per_run.values())
        if not shared:
            hashes_of = "; ".join(f"{run} under {', '.join(sorted(hashes))}" for run, hashes in per_run.items())
            problems.append(
                f"{task}: the runs share no protocol, so their scores cannot be compared ({hashes_of}): "
                f"longtake evaluate --runs {','.join(per_run)} --tasks {task}"
            )
            continue
        protocol = _newest(rows[rows.protocol.isin(shared)])
        others = sorted(set.union(*per_run.values()) - {protocol})
        if others:
            left_out = ", ".join(others)
            notes.append(f"{task}: shown under protocol {protocol}, the newest one; left out: {left_out}.")
        chosen.append(_task_scores(store, task, protocol, rows[rows.protocol == protocol], notes))
    if problems:
        raise UserError(*problems)
    return chosen


def _task_scores(store: Store, task: str, protocol: str, rows: pd.DataFrame, notes: list[str]) -> TaskScores:
    kept = distinct(rows)
    counts = kept[kept.episode >= 0].groupby("system").episode.nunique()
    for system, count in counts[counts < counts.max()].items():
        notes.append(f"{task}: {system} has only {count} of {counts.max()} episodes scored so far.")
    definition, config = find_protocol(store, protocol, kept.dataset.astype(str).unique())
    return TaskScores(task, protocol, definition, config, kept)


def _newest(rows: pd.DataFrame) -> str:
    """The protocol of the newest row of a run."""
    of_runs = rows[rows.run != NO_RUN]
    order = "event_time" if "event_time" in of_runs.columns else "protocol"
    return str(of_runs.sort_values(order).protocol.iloc[-1])


def _definition(store: Store, protocol: str) -> Protocol | None:
    """What is kept of a protocol; None if nothing is. Raises Damaged for another definition."""
    from longtake.evals.protocol import Protocol

    kept = f"protocols/{protocol}.json"
    if not store.exists(kept):
        return None
    return Protocol.model_validate_json(json.dumps(definition(store.read_bytes(kept), protocol)))


def find_protocol(store: Store, protocol: str, datasets: Iterable[str]) -> tuple[Protocol | None, str | None]:
    """The definition behind a hash, and the shipped evaluation that has it.

    Known are those kept in the store, as protocols/HASH.json, and the shipped evaluations on these datasets.
    """
    kept = _definition(store, protocol)
    known = [name for name in datasets if store.exists(f"datasets/{name}/manifest.json")]
    prints = {kept.dataset} if kept else {str(store.dataset(name).fingerprint) for name in known}
    for config in sorted(CONFIGS.glob("*.yaml")):
        for short in load(EvaluateConfig, config.stem, search=CONFIGS).protocols:
            for fingerprint in prints:
                full = short.model_copy(update={"dataset": fingerprint, "stride": kept.stride if kept else None})
                if full.hash == protocol:
                    return full, config.stem
    return kept, None
