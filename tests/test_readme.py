"""What the README tells people to type in Python works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from longtake.datasets.video import read
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.compaction import compact
from tests.worlds.played import planted

README = Path(__file__).parents[1] / "README.md"
SYSTEMS = {"block_ssm": ("r", 17.0), "context_mean": ("none", 15.0), "copy_last": ("none", 11.0)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The folder `store` here, with scores."""
    monkeypatch.chdir(tmp_path)
    store = open_store("store")
    for system, (run, mean) in SYSTEMS.items():
        label = {"run": run, "system": system, "checkpoint": 9, "task": "retrieval", "protocol": "p", "seed": 0}
        rows = [
            label
            | {
                "episode": e,
                "frame": d,
                "distance": d,
                "metric": "psnr",
                "better": "higher",
                "value": mean - d / 10 + e * mean / 10,
            }
            for e in range(4)
            for d in (1, 5, 9)
        ]
        tables.append(store, "scores", rows, f"cells/{system}")
    store.write_bytes("protocols/p.json", json.dumps({"task": "retrieval"}).encode())
    return store


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_python_in_the_readme_runs(store: Store) -> None:
    told: dict[str, Any] = {}
    assert len(blocks()) == 3
    for block in blocks()[1:]:
        exec(compile(block, "README.md", "exec"), told)
    assert set(told["scores"].columns) == {"system", "distance", "value"}
    assert set(told["scores"].distance) == {9}
    assert len(told["found"]) == 9


def test_sql_gives_what_pandas_gives(store: Store) -> None:
    """Also after a retry and a compaction: nothing is there twice."""
    again = store.table("scores", where="system == 'copy_last'").assign(value=3.0)
    tables.append(store, "scores", again, "cells/copy_last")
    compact(store, "scores")
    tables.append(store, "steps", [{"run": "r", "step": 1}], "a")
    told: dict[str, Any] = {}
    exec(blocks()[2], told)
    rows = store.table("scores")
    expected = rows.groupby(["system", "distance"]).value.mean().reset_index()
    assert told["found"].psnr.tolist() == pytest.approx(expected.value.tolist())
    assert 3.0 in told["found"].psnr.tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::longtake.models.rollout.LongContextWarning")
def test_a_world_to_hold_ends_with_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planted(open_store("store"), "20261121-041233-k3f9", dataset="doom-maze-demo")
    lines = blocks()[0].strip().splitlines()
    assert len([line for line in lines if line and not line.startswith(("from", "#"))]) <= 10
    told: dict[str, Any] = {}
    exec(compile(blocks()[0], "README.md", "exec"), told)
    with open("dream.mp4", "rb") as file:
        assert len(read(file).frames) == 16 + 12 + 8 + 8
    assert Path("maze.world").stat().st_size > 10_000 and told["world"].frames == 16
