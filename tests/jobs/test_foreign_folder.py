"""A folder of a user's whose packages are called as our rooms: nothing of it is imported by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import longtake

PLATFORM = Path(longtake.__file__).parents[1]
ENDS = "raise SystemExit(f'{__file__} was imported')\n"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Packages that end whoever imports them, under names of ours and of those that we use."""
    for name in ("models", "evals", "jobs", "platform", "tests", "storage", "train", "torch", "yaml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(ENDS)
    return tmp_path


def run(folder: Path, code: str, *arguments: str) -> str:
    """What a script elsewhere prints that is started in `folder`, as the console script of longtake is."""
    script = folder.parent / f"{folder.name}-script.py"
    script.write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(PLATFORM), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_dry_run_reads_nothing_there(foreign: Path) -> None:
    line = ("collect", "doom-maze-tiny", "--dry-run", "--store", "store")
    told = run(foreign, "from longtake.jobs.cli import main\nmain()\n", *line)
    assert "name: doom-maze-tiny" in told


@pytest.mark.slow
@pytest.mark.cluster
def test_workers_have_the_path_of_the_driver_and_not_its_folder(foreign: Path) -> None:
    code = (
        "import sys\n"
        "from longtake.cluster.launch import launch\n"
        "def seen():\n"
        "    import importlib.util, sys, longtake.jobs.cli\n"
        "    found = importlib.util.find_spec('platform').origin\n"
        "    return sys.path, found, importlib.util.find_spec('models')\n"
        "if __name__ == '__main__':\n"
        "    import ray\n"
        "    with launch(cpus=1):\n"
        "        path, platform, models = ray.get(ray.remote(seen).remote())\n"
        "    print(path)\n"
        "    print(platform)\n"
        "    print(models)\n"
    )
    path, platform, models = run(foreign, code).splitlines()[-3:]
    assert repr(str(foreign)) not in path and "''" not in path
    assert not platform.startswith(str(foreign))
    assert models == "None" or str(foreign) not in models
