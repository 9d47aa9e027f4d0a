"""What a report is about: which runs, and which scores may stand side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.jobs.report import command as report
from longtake.jobs.report.gather import Run, find_runs, gather, windows_reach
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from tests.jobs.report.toy_store import BLOCK, WINDOW


def test_unknown_runs_are_named(store: Store) -> None:
    with pytest.raises(UserError, match=r"unknown run '20261121-041233-k3f8' \(did you mean") as caught:
        report.build(store, ["20261121-041233-k3f8", "nobody", BLOCK])
    assert len(caught.value.lines) == 2


def rescored(store: Store, tmp_path: Path, run: str, task: str, seed: int) -> Store:
    """A copy of the store where a run was scored on a task under another protocol too, later."""
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    rows = store.table("scores", where=f"run in ['{run}', 'none'] and task == '{task}'").drop(columns="event_time")
    tables.append(copy, "scores", rows.assign(protocol=f"other{seed:07d}"), part=f"later-{run}")
    return copy


def test_the_newest_shared_protocol_is_shown_and_the_other_told(store: Store, tmp_path: Path) -> None:
    copy = rescored(store, tmp_path, BLOCK, "rollout", 1)
    alone, both = gather(copy, [BLOCK]), gather(copy, [BLOCK, WINDOW])
    assert alone.tasks[1].protocol == "other0000001" and alone.tasks[1].definition is None
    assert both.tasks[1].protocol == gather(store, [BLOCK]).tasks[1].protocol
    assert any("left out: other0000001" in note for note in both.notes)


def test_runs_without_a_shared_protocol_are_refused(store: Store, tmp_path: Path) -> None:
    copy = rescored(store, tmp_path, BLOCK, "rollout", 1)
    keep = copy.table("scores", where=f"not (run == '{BLOCK}' and task == 'rollout' and protocol != 'other0000001')")
    copy.fs.rm(copy.path("tables", "scores"), recursive=True)
    tables.append(copy, "scores", keep.drop(columns="event_time"), part="kept")
    with pytest.raises(UserError, match="rollout: the runs share no protocol"):
        gather(copy, [BLOCK, WINDOW])


def model_run(**model: object) -> Run:
    return Run("r", "n", {}, {"model": model})


def test_windows_reach_as_far_as_layers_pass_on_what_they_saw() -> None:
    ssm, local, plain = {"mixer": "ssm"}, {"mixer": "none"}, {"mixer": "attention", "local": "none"}
    four = model_run(window=4, layers=[ssm], depth=4)
    assert windows_reach([four]) == 13, "1 + 4 layers x 3"
    mixed = model_run(window=6, layers=[ssm | {"window": 9}, {"local": "none", "window": 50}, ssm])
    assert windows_reach([mixed]) == 1 + 8 + 5
    assert windows_reach([four, mixed]) == 14
    wide = model_run(window=8, layers=[local], depth=4)
    assert windows_reach([wide]) == 29, "nothing but windows"
    assert windows_reach([four, wide]) == 13, "what only the memory of the first can know begins beyond its own windows"
    assert windows_reach([model_run(layers=[plain])]) == windows_reach([]) == 0
    assert windows_reach([Run("r", "n", {}, {}), model_run(kind="autoencoder")]) == 0


def test_runs_of_one_name_are_told_apart(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    for run in (BLOCK, WINDOW):
        tables.append(copy, "runs", [{"run": run, "kind": "train", "name": "same", "config": "{}"}], part=run)
    assert [run.name for run in find_runs(copy, [BLOCK, WINDOW])] == ["same k3f9", "same m2p7"]
