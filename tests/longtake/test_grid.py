"""A grid runs what is missing, retries a worker that dies, and goes on past a cell that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from longtake.cluster.launch import launch
from longtake.grid import Cell, run_grid
from longtake.storage.store import open_store


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_only_missing_cells_run_and_failures_are_named(tmp_path: Path) -> None:
    store, died = open_store(tmp_path / "store"), tmp_path / "died"

    def work(payload: dict[str, Any]) -> list[dict[str, Any]]:
        if payload["name"] == "bad":
            raise ValueError("this cell cannot be scored")
        if payload["name"] == "dies" and not died.exists():
            died.touch()
            os._exit(1)
        return [{"run": "r", "name": payload["name"], "case": case, "metric": "m", "value": 1.0} for case in "xy"]

    cells = [Cell(f"r-{name}", {"name": name}) for name in ("a", "dies", "bad", "b")]
    told: list[tuple[int, int]] = []
    with launch(cpus=2):
        first = run_grid(store, "bench", cells, work, on_done=lambda *counts: told.append(counts))
        again = run_grid(store, "bench", cells, work)
    assert died.exists()
    assert (first.ran, first.reused) == (3, 0)
    assert first.failed == {"r-bad": "ValueError: this cell cannot be scored"}
    assert told[0] == (0, 4) and told[-1] == (4, 4)
    assert (again.ran, again.reused, list(again.failed)) == (0, 3, ["r-bad"])
    table = store.table("bench")
    assert sorted(table.name) == ["a", "a", "b", "b", "dies", "dies"]
