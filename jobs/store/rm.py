"""`longtake rm NAME...`: the files of datasets, runs and sweeps are removed; their rows in the tables stay, and say so.

What others depend on is refused, unless they are removed with it. A removal that was killed is gone on with by the
same command.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from longtake.datasets.dataset import dataset_names
from longtake.errors import UserError, unknown
from longtake.jobs.display.table_formats import size
from longtake.jobs.store.notes import annotate
from longtake.storage import lease
from longtake.storage.store import Store, open_store
from longtake.tables import schema
from longtake.tables.run_notes import REMOVED

if TYPE_CHECKING:
    import pandas as pd

UNDONE = ("failed", "stopped", "lost")
"""Runs that may yet be gone on with."""


@dataclass(frozen=True)
class Removal:
    """One thing to remove: its kind (dataset, run or sweep), name, folders and bytes."""

    kind: str
    name: str
    called: str
    folders: tuple[str, ...]
    bytes: int

    def __str__(self) -> str:
        called = f" ({self.called})" if self.called not in ("", self.name) else ""
        return f"{self.kind} {self.name}{called}"


def main(names: Sequence[str], store: str, dry_run: bool) -> None:
    """The command: find, refuse what others need, say what it frees, remove."""
    place = open_store(store)
    place.require_exists()
    runs = schema.with_columns("runs", place.table("runs"), ("kind", "name", "status", "config"))
    chosen = removals(place, runs, names)
    if problems := list(dependents(place, runs, chosen)):
        raise UserError(*problems)
    for one in chosen:
        print(f"{size(one.bytes):>9}  {one}")
    total = size(sum(one.bytes for one in chosen))
    if dry_run:
        print(f"{total} would be freed; nothing is removed")
        return
    place.require_writable()
    for one in chosen:
        remove(place, one)
    print(f"{total} freed; the rows in the tables stay")


# --- what is meant ------------------------------------------------------------------------------------------


def removals(store: Store, runs: pd.DataFrame, names: Sequence[str]) -> list[Removal]:
    """What the names stand for, each once; of a sweep its trials too.

    Raises:
        UserError: a name of nothing, or of several things.
    """
    chosen: dict[tuple[str, str], Removal] = {}
    problems: list[str] = []
    for name in names:
        try:
            for one in _meant(store, runs, name):
                chosen.setdefault((one.kind, one.name), one)
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return list(chosen.values())


def _meant(store: Store, runs: pd.DataFrame, name: str) -> Iterator[Removal]:
    datasets = {path.strip("/").rpartition("/")[2] for path in store.list("datasets")}
    rows = _rows(runs, name)
    if name in datasets and rows:
        raise UserError(f"{name}: a dataset and the run {rows[0]['run']} are called so; name the run by its id")
    if len(rows) > 1:
        ids = ", ".join(str(row["run"]) for row in rows)
        raise UserError(f"{name} stands for {len(rows)} runs: {ids}; name them by their ids")
    if name in datasets:
        yield _removal(store, "dataset", name, "", (f"datasets/{name}",))
    elif rows:
        yield from _of_run(store, runs, rows[0])
    else:
        known = [*datasets, *(map(str, [*runs.run, *runs.name]) if len(runs) else ())]
        raise UserError(unknown("dataset or run", name, known))


def _rows(runs: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """The runs of that id, else those called so, else those whose id begins so."""
    rows = [{str(key): value for key, value in row.items()} for row in runs.to_dict("records")]
    for fits in (
        lambda row: row["run"] == name,
        lambda row: row["name"] == name and row["status"] != REMOVED,
        lambda row: str(row["run"]).startswith(name),
    ):
        if matching := [row for row in rows if fits(row)]:
            return matching
    return []


def _of_run(store: Store, runs: pd.DataFrame, row: dict[str, Any]) -> Iterator[Removal]:
    run = str(row["run"])
    if row["kind"] != "sweep":
        yield _removal(store, "run", run, str(row["name"]), (f"runs/{run}",))
        return
    yield _removal(store, "sweep", run, str(row["name"]), (f"sweeps/{run}", f"runs/{run}"))
    trials = store.table("trials", where=f"sweep == {run!r}")
    for trial in sorted(set(trials.run.dropna()) & set(runs.run)) if "run" in trials else ():
        called = str(runs.name[runs.run == trial].iloc[0])
        yield _removal(store, "run", str(trial), called, (f"runs/{trial}",))


def _removal(store: Store, kind: str, name: str, called: str, folders: tuple[str, ...]) -> Removal:
    return Removal(kind, name, called, folders, sum(sum(store.sizes(folder).values()) for folder in folders))


# --- who needs it -------------------------------------------------------------------------------------------


def dependents(store: Store, runs: pd.DataFrame, chosen: Sequence[Removal]) -> Iterator[str]:
    """A line per thing to remove that is running, or that something needs which stays."""
    going = {(one.kind, one.name) for one in chosen}
    leaving = {name for kind, name in going if kind != "dataset"}
    stay = [] if runs.empty else runs[(runs.status != REMOVED) & ~runs.run.isin(leaving)].to_dict("records")
    for one in chosen:
        if one.kind == "dataset":
            needs = [*_trained_on(stay, one.name), *_encoded_from(store, one.name, going)]
        else:
            status = str(runs.status[runs.run == one.name].iloc[0])
            if status == "running":
                yield f"{one} is running: stop it first"
            needs = [*_built_on(stay, one.name), *_searched_by(store, one.name, {str(row["run"]) for row in stay})]
        if needs:
            listed = ", ".join(needs[:5]) + (f" and {len(needs) - 5} more" if len(needs) > 5 else "")
            yield f"{one} is needed by {listed}: remove {'it' if len(needs) == 1 else 'them'} too, or first"


def _trained_on(rows: Sequence[dict[Any, Any]], dataset: str) -> list[str]:
    """Runs that were trained on a dataset, alone or in a mixture: it scores them, and they go on with it."""
    return [_named(row) for row in rows if dataset in _datasets(_config(row, dataset))]


def _config(row: dict[Any, Any], mentioned: str) -> dict[str, Any]:
    """A run's config, if a word stands in it at all."""
    text = str(row.get("config") or "")
    return dict(yaml.safe_load(text) or {}) if mentioned in text else {}


def _datasets(config: dict[str, Any]) -> list[str]:
    data = config.get("data")
    named = data.get("dataset") if isinstance(data, dict) else None
    return list(named) if isinstance(named, dict) else [str(named)]


def _encoded_from(store: Store, dataset: str, going: set[tuple[str, str]]) -> list[str]:
    """Datasets of latents whose pixels a dataset holds: pictures are compared with them."""
    others = [name for name in dataset_names(store) if name != dataset and ("dataset", name) not in going]
    manifests = {name: store.dataset(name).manifest.latents for name in others}
    return [f"dataset {name}" for name, latents in manifests.items() if latents and latents.dataset == dataset]


def _built_on(rows: Sequence[dict[Any, Any]], run: str) -> list[str]:
    """Runs whose tokenizer a run is, and those yet to be gone on with that begin with its weights."""
    names = []
    for row in rows:
        config = _config(row, run)
        begins = isinstance(config.get("init"), dict) and config["init"].get("run") == run
        if config.get("tokenizer") == run or (begins and row["status"] in ("running", *UNDONE)):
            names.append(_named(row))
    return names


def _searched_by(store: Store, run: str, stay: set[str]) -> list[str]:
    """The sweep whose trial a run is, if that stays."""
    trials = store.table("trials", where=f"run == {run!r}")
    return [f"sweep {sweep}" for sweep in sorted(set(trials.sweep) & stay)]


def _named(row: dict[Any, Any]) -> str:
    return f"run {row['run']} ({row['name']})"


# --- removing -----------------------------------------------------------------------------------------------


def remove(store: Store, one: Removal) -> None:
    """Remove one thing. First it is said that it is gone, so that nobody finds half of it.

    Raises:
        UserError: somebody goes on with it meanwhile.
    """
    if one.kind == "dataset":
        store.remove([f"datasets/{one.name}/manifest.json"])  # without it no dataset is there
    else:
        with lease.of_sweep(store, one.name) if one.kind == "sweep" else lease.of_run(store, one.name):
            annotate(store, one.name, removed=datetime.datetime.now(datetime.UTC))
    for folder in one.folders:
        store.remove_folder(folder)
