"""What the how-tos tell people to write, put where they say: a process of its own finds the files in its folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page of docs/."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def run(folder: Path, package: str, files: dict[str, str], code: str) -> str:
    """What code prints that runs where a package, such as longtake.evals.tasks, has these files too."""
    added = folder / "added"
    added.mkdir()
    for name, text in files.items():
        (added / f"{name}.py").write_text(text)
    code = f"import {package}\n{package}.__path__.append({str(added)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
