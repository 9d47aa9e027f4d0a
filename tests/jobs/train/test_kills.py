"""`longtake train` on two nodes of one machine: kill -9 of a raylet, a worker or the driver changes no parameter.

`make drills` kills one raylet. By hand: `LONGTAKE_KILLS=10 pytest -m drill -s tests/jobs/train/test_kills.py` kills ten
times, each of the three in turns, and prints what was killed when.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from longtake.cluster.launch import ENVIRONMENT
from longtake.cluster.private_ray import private
from longtake.jobs.bench.train import written
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints, progress_file

ROOT = Path(__file__).parents[3]
VICTIMS = ("raylet", "worker", "driver")
KILLS = int(os.environ.get("LONGTAKE_KILLS", "1"))
PATIENCE_S = 240.0  # on a busy machine
STEPS, SAVE_EVERY = 48, 6
SETTINGS = {
    "steps": STEPS,
    "workers": 2,
    "checkpoint_every": SAVE_EVERY,
    "keep": 9,
    "validation.every": STEPS,
    "engine.zero": 1,
}

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.drill]


@dataclass
class Nodes:
    """A head, where drivers are, and another node whose raylet may be lost."""

    cluster: Any
    other: Any

    def kill_raylet(self) -> None:
        self.other.all_processes["raylet"][0].process.kill()

    def heal(self) -> None:
        """Another node for the lost one."""
        self.cluster.remove_node(self.other, allow_graceful=False)
        self.other = self.cluster.add_node(num_cpus=2)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    paths = [str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")]
    with (
        tempfile.TemporaryDirectory(prefix="ltk", dir="/tmp") as short,
        pytest.MonkeyPatch.context() as patch,
        private(),
    ):
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TMPDIR", short)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield Nodes(cluster, cluster.add_node(num_cpus=2))
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(tmp_path_factory.mktemp("kills"))
    written(store, "doom-maze-tiny", edge=32, frames=96)
    return store


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, store: Store) -> bytes:
    with driving(store) as (driver, run):
        assert driver.wait(PATIENCE_S) == 0
    return weights(store, run())


def weights(store: Store, run: str) -> bytes:
    return store.read_bytes(f"{checkpoints.folder(run, STEPS)}/model.safetensors")


class driving:
    """A driver of its own; gives its process and a function that waits for the id of its run."""

    def __init__(self, store: Store, *more: str) -> None:
        words = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
        self._store, self._before = store, set(store.list("runs"))
        command = [sys.executable, "-m", "longtake.jobs", "train", "tiny", *words, "--store", store.uri, *more]
        self._process = subprocess.Popen(command, cwd=ROOT)

    def __enter__(self) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
        return self._process, self._run

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _run(self) -> str:
        wait_for(lambda: set(self._store.list("runs")) > self._before, PATIENCE_S)
        (found,) = set(self._store.list("runs")) - self._before
        return found.rpartition("/")[2]


@pytest.mark.timeout(4 * PATIENCE_S)
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_kill_changes_no_parameter(nodes: Nodes, store: Store, undisturbed: bytes, seed: int) -> None:
    chosen, victim = random.Random(seed), VICTIMS[seed % len(VICTIMS)]
    moment, rank = chosen.randrange(2, STEPS // 2), chosen.randrange(SETTINGS["workers"])
    with driving(store) as (driver, named):
        run = named()
        wait_for(lambda: step_of(store, run) >= moment, PATIENCE_S)
        at = step_of(store, run)
        if victim == "raylet":
            nodes.kill_raylet()
        elif victim == "driver":
            driver.send_signal(signal.SIGKILL)
        else:
            workers()[rank].kill()
        ended = driver.wait(PATIENCE_S)
    if victim == "raylet":
        nodes.heal()
    restarts = getattr(progress_file.read(store, run), "restarts", 0)
    print(f"kill {seed}: {victim} {rank} at step {at}: driver ended with {ended}, workers replaced {restarts}x")
    assert at < STEPS, "it was done before it could be killed"
    assert (ended == 0) == (victim != "driver")
    if ended:
        with driving(store, "--resume", run) as (again, _):
            assert again.wait(PATIENCE_S) == 0
    assert weights(store, run) == undisturbed


def workers() -> list[psutil.Process]:
    """Those of Ray Train on all nodes, in the order of their ids."""
    mine = psutil.Process().children(recursive=True)
    found = [process for process in mine if process.cmdline()[:1] == ["ray::RayTrainWorker"]]
    return sorted(found, key=lambda process: process.pid)


def step_of(store: Store, run: str) -> int:
    told = progress_file.read(store, run)
    return told.step if told else 0


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
