"""`longtake cluster check` and `longtake cluster token`, as they are typed."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from longtake.jobs import cli

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["cluster", *arguments])
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_made_once_and_never_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)  # of those who share their files
    try:
        assert run("token") == 0
    finally:
        os.umask(before)
    place = home / ".ray" / "auth_token"
    made = place.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", made)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600 and stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert run("token") == 2
    assert place.read_text() == made
    assert run("token", "--out", str(home / "other")) == 0
    shown = capsys.readouterr()
    assert made not in shown.out + shown.err and (home / "other").read_text() not in shown.out + shown.err
    assert "is there already" in shown.err


def test_check_tells_groups_costs_and_what_is_wrong(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(ROOT / "cluster.yaml")) == 2
    shown = capsys.readouterr()
    assert "USD per hour: 0.43 idle, 16.22 full" in shown.out and "gpu_spot" in shown.out
    assert shown.err.count("is not set yet") == 5 and "longtake cluster token" in shown.err
    ready = home / "cluster.yaml"
    ready.write_text((ROOT / "cluster.yaml").read_text().replace("CHANGE-ME", "set"))
    run("token")
    assert run("check", str(ready)) == 0
    assert "is ready" in capsys.readouterr().out
