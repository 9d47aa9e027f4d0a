"""The Ray that a verb starts is nobody else's: a stranger with another home is refused, whichever way it is started."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from longtake.cluster.process_sessions import end_session
from longtake.jobs.bench.train import written
from longtake.storage.store import Store, open_store

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
DATA = ("--set", "data.dataset=walks", "--set", "data.curriculum=[{frames: 8}]")
LONG = ("--set", "steps=100000", "--set", "checkpoint_every=100000", "--set", "validation.every=100000")
VERBS = {
    "train": ("train", "tiny", *DATA, *LONG, "--set", "workers=2"),
    "evaluate": "evaluate tiny --runs none --limit 1 --set dataset=walks --set seeds=[0,1,2,3,4,5,6,7]".split(),
    "nested sweep": "sweep tiny --set change.workers=2 --set change.data.dataset=walks --set change.steps=9999".split(),
}
"""Each way to a local Ray: with ranks and their data, with plain tasks, and with a dashboard and trials."""
BUSY = {"train": "ray::RayTrainWorker", "nested sweep": "ray::RayTrainWorker"}
"""The process that shows that a verb is at work; of others, any that has begun a task."""
OPEN = {"ray::RayTrainWorker"}
"""Who listens beyond loopback: torch's TCPStore, in which ranks meet."""
NUMBERS = ("200 # HELP", "405 # HTTP 405")
"""How a port of Prometheus answers, which has nothing but numbers."""
STRANGER = """
import contextlib, json, sys
import grpc, requests
from ray.core.generated import core_worker_pb2 as worker, core_worker_pb2_grpc as workers
from ray.core.generated import gcs_service_pb2 as gcs, gcs_service_pb2_grpc as gcs_
from ray.core.generated import node_manager_pb2 as node, node_manager_pb2_grpc as nodes
from ray.core.generated import ray_client_pb2 as client, ray_client_pb2_grpc as clients

def calls(channel):
    yield "gcs", lambda: gcs_.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(gcs.GetAllNodeInfoRequest(), timeout=30)
    asked = node.GetSystemConfigRequest()
    yield "raylet", lambda: nodes.NodeManagerServiceStub(channel).GetSystemConfig(asked, timeout=30)
    yield "worker", lambda: workers.CoreWorkerServiceStub(channel).PushTask(worker.PushTaskRequest(), timeout=30)
    yield "client", lambda: clients.RayletDriverStub(channel).ClusterInfo(client.ClusterInfoRequest(), timeout=30)

def told(port):
    for who, call in calls(grpc.insecure_channel(f"127.0.0.1:{port}")):
        try:
            call()
            yield who, "LET IN"
        except grpc.RpcError as error:
            yield who, error.code().name
    for method, path in ("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("GET", "/api/v0/nodes"), ("GET", "/logs"):
        with contextlib.suppress(requests.RequestException):
            answer = requests.request(method, f"http://127.0.0.1:{port}{path}", json={"entrypoint": "true"}, timeout=30)
            yield "http", f"{answer.status_code} {answer.text[:40]}"

print(json.dumps([(port, *one) for port in sys.argv[1:] for one in told(port)]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = open_store(tmp_path_factory.mktemp("store"))
    written(place, "walks", edge=32, frames=96)
    return place


@pytest.fixture
def home() -> Iterator[Path]:
    """Short, as sockets lie under it."""
    with tempfile.TemporaryDirectory(prefix="ltp", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def running(verb: str, store: Store, home: Path) -> Iterator[tuple[list[psutil.Process], Path]]:
    """The processes of a verb at work, and what it prints; with what a user may have set for a cluster."""
    variables = {"RAY_TMPDIR": str(home), "RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    line = [sys.executable, "-m", "longtake.jobs", *VERBS[verb], "--store", store.uri]
    log = home / "log"
    with log.open("wb") as out:
        driver = subprocess.Popen(
            line, cwd=home, env=kept | variables, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield wait_for_work(driver, BUSY.get(verb), log), log
    finally:
        end_session(driver.pid)
        driver.wait(60)


def wait_for_work(driver: subprocess.Popen[bytes], name: str | None, log: Path) -> list[psutil.Process]:
    deadline = time.monotonic() + 150
    while True:
        family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        names = [title(each) for each in family]
        if any(one.startswith("ray::") and (one == name or not (name or one in IDLE)) for one in names):
            return family
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


IDLE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return (process.cmdline() or [""])[0].split("(")[0]
    return ""


def listening(family: list[psutil.Process]) -> list[tuple[str, str, int]]:
    """Who listens where."""
    found = []
    for process in family:
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.append((title(process), one.laddr.ip, one.laddr.port))
    return found


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.parametrize("verb", VERBS)
def test_a_stranger_is_refused(verb: str, store: Store, home: Path) -> None:
    with running(verb, store, home) as (family, log):
        there = listening(family)
        ports = [str(port) for who, _, port in there if who not in OPEN]
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, *ports],
            env={"PATH": os.environ["PATH"], "HOME": str(home / "nobody")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = [" ".join(each.cmdline()) for each in family if each.is_running()]
        # Not of the driver: /proc has the environment that a process began with.
        tokens = {each.environ().get("RAY_AUTH_TOKEN") for each in family[1:] if each.is_running()} - {None}
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert not [one for one in answers if one[2] == "LET IN"]
    for who in ("gcs", "raylet", "worker"):
        assert [one for one in answers if one[1:] == [who, "UNAUTHENTICATED"]], f"the {who} was not reached"
    web = [answer for _, who, answer in answers if who == "http" and not answer.startswith(NUMBERS)]
    assert web and all(answer.startswith("401") for answer in web), web
    wide = {who for who, ip, _ in there if not is_loopback(ip)}
    assert wide <= OPEN, there
    assert len(tokens) == 1, "a token for the launch, and the same for all of its processes"
    assert_unwritten(tokens.pop(), lines, log, home, Path(store.uri))


def assert_unwritten(token: str, lines: list[str], log: Path, *folders: Path) -> None:
    """The token is on no command line and in no file: what was printed, Ray's logs, the store."""
    assert len(token) >= 32 and token not in "".join(lines)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert log in files and sum("/logs/" in str(path) for path in files) > 10
    assert not [path for path in files if token.encode() in path.read_bytes()]
