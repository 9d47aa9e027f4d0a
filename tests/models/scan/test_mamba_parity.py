"""Our scan and mixer equal the real mamba-ssm, whose kernels run in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("interpreted_kernels.py")
LIMIT_S = 240


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 30)
def test_our_scan_and_mixer_equal_mamba_ssm() -> None:
    """In a process of its own: the interpreter must be asked for before Triton is imported."""
    missing = [name for name in ("mamba_ssm", "triton") if importlib.util.find_spec(name) is None]
    assert not missing, f"{' and '.join(missing)} not installed: `make setup` does, on Linux, and needs no GPU for it"
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "MAMBA_DETERMINISTIC": "1",  # one configuration per kernel in place of a search for the fastest
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "platform"))),
    }
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout.splitlines()[-1])
    assert len(cases) == 6 and all(len(errors) >= 8 for errors in cases.values())
    wrong = {
        f"{case}: {name}": error
        for case, errors in cases.items()
        for name, error in errors.items()
        if not error <= 1e-5
    }
    assert not wrong, wrong
