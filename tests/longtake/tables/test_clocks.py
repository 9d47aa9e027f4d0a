"""Machines whose clocks are minutes apart, or set back: live runs are not lost, and work that is redone wins."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from longtake.config import Config
from longtake.storage import clock
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.compaction import compact
from longtake.tables.run_record import RunRecord

MINUTES = 5 * 60


class Toy(Config):
    """Any config."""


def shift(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """This process's clock is off; what keeps the files has its own."""
    real = time.time_ns
    patch.setattr(time, "time_ns", lambda: real() + int(seconds * 1e9))
    patch.setattr(tables, "_last_ns", 0)


def begin(store: Store, run: str = "r") -> RunRecord:
    return RunRecord.start(store, run, kind="train", name="toy", config=Toy(), heartbeat_s=1000)


def status(store: Store) -> list[str]:
    return [str(one) for one in store.table("runs").status]


@pytest.mark.parametrize("merged", [False, True])
def test_a_live_run_of_a_machine_whose_clock_is_behind_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        shift(patch, -MINUTES)
        record = begin(store)
    if merged:
        compact(store, "runs")
    assert status(store) == ["running"]
    for path in tmp_path.rglob("*.parquet"):
        os.utime(path, (time.time() - MINUTES,) * 2)
    assert status(store) == ["lost"]
    record.finish()
    assert status(store) == ["done"]


def test_also_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{bucket}/clocks")
    with monkeypatch.context() as patch:
        shift(patch, -MINUTES)
        record = begin(store)
    assert status(store) == ["running"]
    assert all(-2 < age < 50 for age in clock.ages(store, "tables/runs").values())
    record.finish()


def test_a_folder_that_cannot_be_written_is_looked_at_by_our_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert 0 <= clock.ages(open_store(tmp_path), "")["a"] < 50


def steps(first: int, end: int, loss: float) -> list[dict[str, Any]]:
    return [{"run": "r", "step": step, "loss": loss} for step in range(first, end)]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("back", [MINUTES, 3600])
def test_steps_that_are_done_again_win_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool, back: int
) -> None:
    store = open_store(tmp_path)
    tables.append(store, "steps", steps(0, 10, 1.0), "r-00000000")
    tables.append(store, "steps", steps(10, 20, 1.0), "r-00000010")
    if merged:
        compact(store, "steps")
    shift(monkeypatch, -back)
    tables.later_than(store, "steps", "r-")
    tables.append(store, "steps", steps(5, 15, 2.0), "r-00000005")
    found = store.table("steps")
    assert found.loss.tolist() == [1.0] * 5 + [2.0] * 10 + [1.0] * 5
    compact(store, "steps")
    assert store.table("steps").loss.tolist() == found.loss.tolist()
