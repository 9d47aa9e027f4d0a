"""What docs/your-data.md tells people to type works, as it stands, from an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longtake.jobs.cli import app
from longtake.jobs.datasets import shard_tasks

TEXT = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
FEWER = {
    "train": ["--set", "steps=1", "--set", "checkpoint_every=1"],
    "evaluate": ["--dry-run"],
    "inspect": [],
    "ingest": [],
}
"""What the suite has no time for: all steps of a training, and Ray."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, in which shards are made by this process, without Ray."""

    def make_shards(label: str, make: Any, shards: list[int], of: int, cpus: int | None) -> None:
        for shard in shards:
            make(shard)

    monkeypatch.setattr(shard_tasks, "make_shards", make_shards)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGTAKE_STORE", raising=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_runs_from_top_to_bottom(here: None) -> None:
    pytest.importorskip("h5py")
    told: dict[str, Any] = {}
    said = ""
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "your-data.md", "exec"), told)
            continue
        for line in block.splitlines():
            words = shlex.split(line)[1:]
            result = CliRunner().invoke(app, [*words, *FEWER.get(words[0], []), "--store", "store"])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
            said += result.output
    for name in ("mine", "shots", "tarred", "minari", "teco"):
        assert f"dataset {name} is ready" in said
    assert "all as written, and as clips has them" in said


def test_every_format_is_on_the_page() -> None:
    from longtake.sources.formats import formats

    table = re.findall(r"^\| `([a-z0-9-]+)` \|", TEXT.split("## Formats")[1].split("## From Python")[0], re.MULTILINE)
    assert set(table) == set(formats())


def test_every_layout_and_kind_of_condition_is_on_the_page() -> None:
    from typing import get_args

    from longtake.models.config import ConditionKind
    from longtake.sources.formats.base import LAYOUTS

    assert all(f"`{layout}`" in TEXT for layout in LAYOUTS)
    assert set(get_args(ConditionKind)) <= set(re.findall(r"^\| ([a-z]+) \|", TEXT, re.MULTILINE))
