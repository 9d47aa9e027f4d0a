"""Nodes are killed under a training, its data tasks and an evaluation: the work goes on or waits, and says which."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from longtake.cluster.private_ray import private
from longtake.config import load
from longtake.jobs.collect import command as collect
from longtake.jobs.collect.command import CollectConfig
from longtake.storage.store import Store, open_store
from longtake.training import progress_file

pytest.importorskip("vizdoom")
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.drill, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_worker_niceness": "0",  # else workers wait for every other process of a busy machine
}
SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
"""When Ray takes a node for dead; a killed one is noticed at once, a slow one must not be."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs; tests add the nodes."""
    from ray.cluster_utils import Cluster

    with (
        tempfile.TemporaryDirectory(prefix="ltn", dir="/tmp") as short,
        pytest.MonkeyPatch.context() as patch,
        private(),
    ):
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'platform'}")
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": SOON,
            },
        )
        patch.setenv("RAY_ADDRESS", made.address)
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture(autouse=True)
def alone(cluster: Any) -> Iterator[None]:
    """Nodes of a test end with it."""
    yield
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def nodes(cluster: Any) -> list[Any]:
    """Two nodes of one CPU."""
    return [add(cluster), add(cluster)]


def add(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the data of `train tiny`, made without Ray."""
    place = open_store(tmp_path_factory.mktemp("store"))
    config = load(CollectConfig, "doom-maze-tiny", search=collect.CONFIGS)
    for shard in range(config.shards):
        collect.make_shard(config, place.uri, shard)
    collect.run(config, place)
    return place


class Verb:
    """A verb that runs on the cluster."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def told(self) -> str:
        """All that it has printed."""
        return self._log.read_text()

    def says(self, words: str, seconds: float = 60) -> str:
        """The line in which it says so, once it does."""
        return until(lambda: [line for line in self.told().splitlines() if words in line], seconds, self.told)[0]

    def done(self, seconds: float = 180) -> str:
        """All that it has printed, at its end."""
        assert self._process.wait(seconds) == 0, self.told()
        return self.told()


@contextlib.contextmanager
def verb(store: Store, line: str) -> Iterator[Verb]:
    with tempfile.NamedTemporaryFile("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "longtake.jobs", *line.split(), "--store", store.uri],
            cwd=store.uri,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            yield Verb(process, Path(out.name))
        finally:
            process.kill()
            process.wait(60)


def until(look: Callable[[], Any], seconds: float, told: Callable[[], str]) -> Any:
    """What `look` returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
    return found


def at_step(store: Store, training: Verb, step: int) -> str:
    """The run of a training, once it has come so far."""
    run = training.says("tiny: run ").split()[-1]
    until(lambda: (seen := progress_file.read(store, run)) and seen.step >= step, 240, training.told)
    return run


def runs(node: Any, title: str) -> bool:
    """Whether a process of that title belongs to a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for child in raylet.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(child.cmdline()):
                return True
    return False


def steps(store: Store, run: str) -> list[int]:
    return sorted(store.table("steps", where=f"run == {run!r}").step)


# --- the drills -------------------------------------------------------------------------------------------------


def test_a_training_waits_for_a_node(cluster: Any, nodes: list[Any], store: Store) -> None:
    """Two workers do not fit on what is left; they go on when another node has come."""
    with verb(store, "train tiny --set workers=2 --set steps=60") as training:
        run = at_step(store, training, 12)
        assert all(runs(node, "RayTrainWorker") for node in nodes)
        cluster.remove_node(nodes[1], allow_graceful=False)
        line = training.says("(1 CPU) is lost")
        assert "waits for more: 2 workers x" in line and "= 2 CPUs, the cluster has 1" in line
        add(cluster)
        training.says("(1 CPU) has come; the job goes on with 2 nodes with 2 CPUs")
        assert "is done" in training.done()
    assert steps(store, run) == list(range(60))
    assert progress_file.read(store, run).restarts >= 1  # type: ignore[union-attr]


def test_a_training_goes_on_without_a_data_node(cluster: Any, store: Store) -> None:
    """Its data tasks have only a node of their own: it is lost, and they are done where there is room again."""
    rank = add(cluster)
    with (
        sitting(cluster, rank, 0.5) as leave,
        verb(store, "train tiny --set steps=200 --set checkpoint_every=100") as it,
    ):
        until(lambda: runs(rank, "RayTrainWorker"), 120, it.told)
        other = add(cluster)
        until(lambda: runs(other, "ray::MapBatches"), 120, it.told)
        run = at_step(store, it, 2)
        cluster.remove_node(other, allow_graceful=False)
        assert "the job goes on with 1 node with 1 CPU" in it.says("(1 CPU) is lost")
        leave()
        it.done()
    assert steps(store, run) == list(range(200))
    assert progress_file.read(store, run).restarts == 0  # type: ignore[union-attr]


def test_an_evaluation_goes_on_with_what_is_left(cluster: Any, nodes: list[Any], store: Store) -> None:
    """The node that does the cells is lost, and they are done on the other as soon as that has room."""
    line = "evaluate tiny --runs none --set dataset=doom-maze-tiny --set clips_per_cell=1 --set seeds=[0,1,2,3]"
    with sitting(cluster, nodes[0], 1) as leave, verb(store, line) as it:
        until(lambda: list(Path(store.path("tables", "scores")).glob("*")), 180, it.told)
        cluster.remove_node(nodes[1], allow_graceful=False)
        assert "the job goes on with 1 node with 1 CPU" in it.says("(1 CPU) is lost")
        leave()
        assert "144 cells scored, 0 were there already" in it.done()


class Sitting:
    """Takes the place of tasks on a node."""

    def sits(self) -> bool:
        return True


@contextlib.contextmanager
def sitting(cluster: Any, node: Any, cpus: float) -> Iterator[Callable[[], None]]:
    """CPUs of a node are taken until one calls what this gives."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        made = ray.remote(Sitting).options(num_cpus=cpus, scheduling_strategy=there).remote()
        ray.get(made.sits.remote(), timeout=120)
        yield lambda: ray.kill(made)
    finally:
        ray.shutdown()
