"""`longtake bench [NAME...]`: measure how fast our parts are, beside others', as rows of the table `bench`.

A benchmark is a module of this folder, entered in BENCHMARKS. Its docstring is its card: what is measured, against
what, how long it takes. It has a `Settings` config with a default for every field, and
`run(settings) -> list[Row]`. Each run of one is a run of the store, which holds its config, machine and versions.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from longtake.config import Config, dump, load
from longtake.errors import UserError, unknown
from longtake.jobs.display.show import show
from longtake.provenance import new_run_id
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.run_record import RunRecord

if TYPE_CHECKING:
    import pandas as pd

CONFIGS = Path(__file__).parents[1] / "configs" / "bench"
BENCHMARKS = {
    "scan": "longtake.jobs.bench.scan",
    "delta": "longtake.jobs.bench.delta",
    "recall": "longtake.jobs.bench.recall",
    "stream": "longtake.jobs.bench.stream",
    "plan": "longtake.jobs.bench.plan",
    "locality": "longtake.jobs.bench.locality",
    "nested": "longtake.jobs.bench.nested",
    "step": "longtake.jobs.bench.step",
    "train": "longtake.jobs.bench.train",
    "start": "longtake.jobs.bench.start",
    "rollout": "longtake.jobs.bench.rollout",
    "world": "longtake.jobs.bench.world",
    "serve": "longtake.jobs.bench.serve",
    "tables": "longtake.jobs.bench.table_load",
    "sweep": "longtake.jobs.bench.sweep",
    "submit": "longtake.jobs.bench.submit",
}
"""Name to module; the order is that of a run of all."""

SHOWN = ("name", "case", "metric", "value", "unit", "repetitions")


def main(names: Sequence[str], overrides: list[str], store: str, dry_run: bool = False) -> None:
    """The command: check everything, then measure and print; with `dry_run` print the settings and the cards."""
    modules = choose(names)
    settings = read_settings(modules, overrides)
    where = open_store(store)
    if dry_run:
        print(dump(settings))
        for name, module in modules.items():
            print(f"{name}: {str(module.__doc__).strip()}\n")
        return
    where.require_writable()
    runs = [run_one(where, name, module, getattr(settings, name)) for name, module in modules.items()]
    show(results(where, runs))
    print(f"kept: longtake results bench --store {where.argument}")


def choose(names: Sequence[str]) -> dict[str, ModuleType]:
    """The benchmarks of these names, all of them if none is named. Raises UserError for those that are not there."""
    wrong = [unknown("benchmark", name, BENCHMARKS) for name in names if name not in BENCHMARKS]
    if wrong:
        raise UserError(*wrong)
    return {name: importlib.import_module(BENCHMARKS[name]) for name in dict.fromkeys(names or BENCHMARKS)}


def read_settings(modules: dict[str, ModuleType], overrides: Sequence[str]) -> Config:
    """One section per benchmark, with `NAME.field=value` overrides. Raises UserError with every problem."""
    sections: dict[str, Any] = {name: (module.Settings, module.Settings()) for name, module in modules.items()}
    schema: type[Config] = create_model("BenchConfig", __base__=Config, **sections)
    return load(schema, "default", overrides, search=CONFIGS)


def run_one(store: Store, name: str, module: ModuleType, settings: Config) -> str:
    """Run one benchmark and keep its rows; returns the id of the run."""
    with RunRecord.start(store, new_run_id(), kind="bench", name=name, config=settings) as record:
        rows = [{"run": record.run, "name": name, **asdict(row)} for row in module.run(settings)]
        tables.append(store, "bench", rows, part=record.run)
    return record.run


def results(store: Store, runs: Sequence[str]) -> pd.DataFrame:
    """What was measured in these runs, as it is shown."""
    rows = store.table("bench")
    return rows[rows["run"].isin(list(runs))].reindex(columns=list(SHOWN))
