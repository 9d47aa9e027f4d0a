"""What docs/adding-a-source.md and adding-a-logger.md tell people to write works, in the folder and in a package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake import registry
from longtake.errors import UserError
from longtake.jobs.lookup import cards
from longtake.jobs.train import loggers
from longtake.models.config import LayerConfig
from longtake.models.mixers import local_mixers, mixers
from longtake.sources import environments, formats
from longtake.sources.formats.base import Format
from tests.jobs.train import test_every_logger
from tests.longtake.sources.environments import test_every_environment
from tests.longtake.sources.formats import test_every_format

ROOT = Path(__file__).parents[2]
SOURCES, LOGGERS = ((ROOT / "docs" / f"adding-a-{what}.md").read_text() for what in ("source", "logger"))
DOT, CSV = re.findall(r"```python\n(.*?)```", SOURCES, re.DOTALL)
(LINES,) = re.findall(r"```python\n(.*?)```", LOGGERS, re.DOTALL)
(DOTS,) = re.findall(r"```yaml\n(.*?)```", SOURCES, re.DOTALL)
(WATCH,) = re.findall(r"```yaml\n(.*?)```", LOGGERS, re.DOTALL)
(POINTS,) = re.findall(r"```toml\n(.*?)```", SOURCES, re.DOTALL)
FILES = {environments: ("pushed_dot", DOT), formats: ("frames_csv", CSV), loggers: ("json_lines", LINES)}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files of the how-tos, as if they lay in their folders."""
    for package, (stem, text) in FILES.items():
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{stem}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        package.modules.cache_clear()
    yield
    for package, (stem, _) in FILES.items():
        sys.modules.pop(f"{package.__name__}.{stem}", None)
        package.modules.cache_clear()


def pairs(path: Path) -> None:
    for seed in range(3):
        np.save(path / f"{seed}.npy", np.full((6, 8, 8, 3), 50 * seed, np.uint8))
        rows = [f"{step},{seed}" for step in range(6)]
        (path / f"{seed}.csv").write_text("\n".join(["ahead,left", *rows]))


def test_the_environment_keeps_the_contract(added: None) -> None:
    assert "pushed-dot" in environments.environments()
    settings: dict[str, Any] = {"steps": 12}
    test_every_environment.keeps_its_name("pushed-dot", settings)
    test_every_environment.a_seed_is_an_episode("pushed-dot", settings)
    test_every_environment.episodes_are_what_is_said_of_them("pushed-dot", settings)


@pytest.mark.parametrize(
    "check", ["keeps_its_name", "reads_the_same_every_time", "refuses_an_empty_place", "goes_to_workers"]
)
def test_the_format_keeps_the_contract(added: None, check: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    asked = {"path": place} if check != "keeps_its_name" else {}
    getattr(test_every_format, check)("frames-csv", (pairs, {}), **asked)


def test_the_logger_keeps_the_contract(added: None, tmp_path: Path) -> None:
    test_every_logger.is_a_logger("json-lines")
    folder = tmp_path / "shown"
    folder.mkdir()
    test_every_logger.goes_on_in_a_second_session("json-lines", folder)
    assert (folder / "steps.jsonl").read_text().count("\n") == 5


# --- in a package of one's own --------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with an installed package `dots` that holds all three."""
    (tmp_path / "dots").mkdir()
    (tmp_path / "dots" / "__init__.py").write_text("")
    for stem, text in FILES.values():
        (tmp_path / "dots" / f"{stem}.py").write_text(text)
    register(tmp_path, f"{POINTS}\n[longtake.jobs.train.loggers]\njson-lines = dots.json_lines\n")
    return tmp_path


def register(folder: Path, points: str) -> None:
    """What pip would write of a pyproject.toml's entry points."""
    told = folder / "dots-1.0.dist-info"
    told.mkdir(exist_ok=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: dots\nVersion: 1.0\n")
    text = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", points).replace('"', "")
    (told / "entry_points.txt").write_text(text)


def longtake(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{package}"}
    command = [sys.executable, "-m", "longtake.jobs", *arguments]
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_package_of_ones_own_registers_them(package: Path) -> None:
    (package / "dots.yaml").write_text(DOTS)
    (package / "place").mkdir()
    pairs(package / "place")
    listed = longtake(package, "sources")
    assert "pushed-dot" in listed.stdout and "frames-csv" in listed.stdout, listed.stderr
    recorded = longtake(package, "collect", "dots.yaml", "--dry-run")
    assert "episodes  20 of 32 frames" in recorded.stdout, recorded.stderr
    read = longtake(package, "ingest", "frames-csv", "place", "--name", "mine", "--set", "fps=10", "--dry-run")
    assert "episodes  3 to read" in read.stdout, read.stderr
    wrong = longtake(package, "train", "tiny", "--set", WATCH.strip().replace(": ", "=").replace("json", "jsn"))
    assert wrong.stderr.startswith('error: watch.0: got "jsn-lines", allowed: json-lines, mlflow, ')


def test_a_package_registers_a_mixer(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding-a-mixer.md").read_text(), re.DOTALL)
    (package / "dots" / "ema.py").write_text(text)
    register(package, "[longtake.models.mixers]\nema = dots.ema\n")
    monkeypatch.syspath_prepend(package)
    for registered in (mixers, local_mixers):
        registered.cache_clear()
    try:
        layer = LayerConfig(mixer="ema", options={"longest": 32})
        assert layer.scan_class is not None and layer.scan_class.__module__ == "dots.ema"
        assert "ema" not in local_mixers()
        (card,) = [card for card in cards.mixers() if card.name == "ema"]
        assert card.sentence.startswith("Exponential average (`ema`): every channel keeps a running average")
    finally:
        for registered in (mixers, local_mixers):
            registered.cache_clear()
        forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what was imported of the package out again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "dots"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("lerobot = dots.frames_csv", "the name lerobot is taken: give it another"),
        ("mine = dots.nowhere", "cannot be loaded: ModuleNotFoundError: No module named 'dots.nowhere'"),
        ("mine = dots.pushed_dot", "dots.pushed_dot has no FORMAT, a Format"),
        ("mine = dots.frames_csv:FORMAT", "names dots.frames_csv:FORMAT, which is no module"),
    ],
)
def test_a_registration_that_is_none_is_told(
    package: Path, point: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(package, f"[longtake.sources.formats]\n{point}\n")
    monkeypatch.syspath_prepend(package)
    with pytest.raises(UserError) as caught:
        registry.modules(formats, {"FORMAT": Format})
    start = f"package dots, entry point {point.split(' ')[0]} of longtake.sources.formats: "
    assert str(caught.value) == start + told
    forget(monkeypatch)
