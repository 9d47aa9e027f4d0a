"""The wheel that goes to a cluster: what it holds, what it is called, and what cannot be shipped."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from longtake.cluster.wheel import build_wheel
from longtake.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for room in ("platform/longtake", "models", "evals", "jobs"):
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("")
    for room in ("models", "evals", "jobs"):
        (root / "platform" / "longtake" / room).symlink_to(f"../../{room}")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    return root


def test_the_wheel_requires_nothing_and_holds_the_rooms(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert "Requires-Dist" not in metadata
    assert {
        "longtake/storage/store.py",
        "longtake/models/rollout.py",
        "longtake/evals/tasks/__init__.py",
        "longtake/jobs/__main__.py",
    } <= set(names)
    assert "longtake/jobs/configs/train/tiny.yaml" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"longtake"}, "and nothing else"


def test_the_name_of_the_wheel_follows_its_content(checkout: Path, tmp_path: Path) -> None:
    first, again = (build_wheel(tmp_path / folder, checkout) for folder in "ab")
    assert first.name == again.name and first.read_bytes() == again.read_bytes()
    (checkout / "models" / "new.py").write_text("x = 1\n")
    assert build_wheel(tmp_path, checkout).name != first.name


def test_a_package_called_platform_is_refused(checkout: Path, tmp_path: Path) -> None:
    (checkout / "platform" / "__init__.py").touch()
    with pytest.raises(UserError, match="hides Python's own module") as caught:
        build_wheel(tmp_path, checkout)
    assert len(caught.value.lines) == 1


def test_an_installed_longtake_cannot_be_shipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="submit ships a checkout"):
        build_wheel(tmp_path, tmp_path)
