"""`make setup` notices a checkout that was moved, and a virtual environment that was copied."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.mark.parametrize(("made_in", "code"), [("/elsewhere/longtake", 2), ("", 0), (None, 0), ("here", 0)])
def test_where_the_environment_was_made(tmp_path: Path, made_in: str | None, code: int) -> None:
    shutil.copy(MAKEFILE, tmp_path / "Makefile")
    (tmp_path / ".venv").mkdir()
    if made_in is not None:
        (tmp_path / ".venv" / ".installed").write_text(f"{tmp_path}\n" if made_in == "here" else made_in)
    done = subprocess.run(["make", "placed"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    if code:
        assert f".venv was made in {made_in}, and this is {tmp_path}" in done.stderr
        assert "Remove .venv, and make setup makes it anew" in done.stderr
