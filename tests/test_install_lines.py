"""A node's install line, run for real beside a simulated card: by `make cluster`, for it asks the package index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PIN = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("deepspeed=="))

pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", ["cluster.yaml", "platform/clusters/onprem.yaml"])
def test_deepspeed_is_prepared_beside_a_card_without_nvcc(name: str, tmp_path: Path) -> None:
    """Its setup runs where it is asked for its metadata; without what the line sets it stops there."""
    setup = yaml.safe_load((ROOT / name).read_text())["setup_commands"]
    line = next(command for command in setup if "--no-build-isolation" in command)
    found = re.search(r"(?:\w+=\S+ )?pip install [^&]*--no-build-isolation", line)
    assert found is not None
    pip = f"{sys.executable} -m pip download --no-deps --no-binary deepspeed --dest {tmp_path}"
    told = found[0].replace("pip install", pip).replace("~/longtake", str(ROOT))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "simulated_card")}
    codes = []
    for command in (told, told.removeprefix("DS_IGNORE_CUDA_DETECTION=1 ")):
        done = subprocess.run(f"{command} {PIN}", shell=True, env=environment, capture_output=True, text=True)
        codes.append(done.returncode)
    assert codes[0] == 0 and codes[1] != 0 and "MissingCUDAException" in done.stdout + done.stderr
