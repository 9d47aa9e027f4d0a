"""`longtake doctor`: what is wrong is found, with what to do about it."""

from __future__ import annotations

import collections
import importlib.metadata
import shutil
import sys
from pathlib import Path

import pytest

from longtake.jobs.lookup import doctor

Usage = collections.namedtuple("Usage", "total used free")


def states(look: object) -> dict[str, str]:
    return {found.what: found.state for found in look}  # type: ignore[attr-defined]


def test_a_machine_that_works_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(str(tmp_path / "store"), ray=False)
    lines = capsys.readouterr().out.splitlines()
    assert code == any(line.startswith("PROBLEM") for line in lines)
    assert {"python", "longtake", "torch", "/dev/shm", "disk", "store"} <= {line[8:20].strip() for line in lines}
    assert not (tmp_path / "store").exists(), "looking makes nothing"


def test_little_room_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**8))
    found = list(doctor.room())
    assert states(found) | {"CPUs": ""} == {"CPUs": "", "/dev/shm": "PROBLEM", "disk": "PROBLEM"}
    assert "RAY_TMPDIR" in found[-1].way_out


def test_a_package_of_another_version_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=99", "nothing-of-that-name", "pandas>=1", "vizdoom>=99 ; extra == 'doom'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: asked)
    (found,) = doctor.versions()
    assert found.state == "PROBLEM" and "nothing-of-that-name is missing" in found.text and "is not >=99" in found.text
    assert "vizdoom" not in found.text


def test_a_moved_environment_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    script = tmp_path / "bin" / "longtake"
    script.write_text(f"#!{tmp_path}/bin/python3\n")
    assert "command" not in states(doctor.code())
    script.write_text("#!/elsewhere/.venv/bin/python3\n")
    assert states(doctor.code())["command"] == "PROBLEM"


def test_a_store_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert states(doctor.places(str(tmp_path / "file"))) == {"store": "PROBLEM"}
    assert states(doctor.places(str(tmp_path))) == {"store": "ok"}
    assert states(doctor.places("ftp://x")) == {"store": "PROBLEM"}
