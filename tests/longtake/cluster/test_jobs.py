"""Jobs on a cluster: what never fits is refused, what answers is read, and a log is written once."""

from __future__ import annotations

import http.server
import json
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from longtake.cluster import autoscaler, jobs, launch
from longtake.cluster.demand import Demand
from longtake.cluster.jobs import Head, Job, _Log
from longtake.cluster.jobs_client import normal_address, outside_errors
from longtake.errors import UserError
from longtake.jobs.clusters import submit


class Fake(Head):
    """A head with these nodes, and an autoscaler if it is told so, which may add nodes of these kinds."""

    def __init__(self, *nodes: dict[str, float], address: str = "http://127.0.0.1:8265", ip: str = "127.0.0.1"):
        self.address = address
        self._nodes = [{"node_ip": ip, "resources_total": node} for node in nodes]
        self.autoscaler = False
        self.kinds: list[dict[str, float]] | None = None

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def grows(self) -> bool:
        return self.autoscaler

    def kinds_of_nodes(self) -> list[dict[str, float]] | None:
        return self.kinds


def test_what_never_fits_is_refused_with_the_arithmetic() -> None:
    head = Fake({"CPU": 2}, {"CPU": 8, "GPU": 1})
    head.require(0, 0)
    head.require(8, 1, Demand(10))
    with pytest.raises(UserError) as caught:
        head.require(4, 2, Demand(11, gpus_per_worker=1))
    own, cpus, gpus = caught.value.lines
    assert own.startswith("the job's own process (--cpus 4 --gpus 2) needs 4 CPUs, 2 GPUs on a single node")
    assert own.endswith("have 8 CPUs, 1 GPU; 2 CPUs")
    assert "= 11 CPUs" in cpus and "has 10" in cpus and "11 GPUs" in gpus


def test_many_small_nodes_hold_no_large_worker() -> None:
    head = Fake(*[{"CPU": 4, "GPU": 1}] * 8)
    head.require(0, 0, Demand(8, gpus_per_worker=1))
    with pytest.raises(UserError, match="one worker needs 0.5 CPUs, 2 GPUs on a single node.* have 4 CPUs, 1 GPU$"):
        head.require(0, 0, Demand(1, gpus_per_worker=2))


def test_a_cluster_that_grows_is_refused_only_what_no_node_of_it_could_hold() -> None:
    head = Fake({"CPU": 0})
    head.autoscaler = True
    head.require(4, 2, Demand(11, gpus_per_worker=1))
    head.kinds = [{"CPU": 8, "GPU": 1, "most": 2}, {"CPU": 16, "GPU": 0, "most": 4}]
    for cpus, gpus in ((8, 1), (16, 0), (0, 0)):
        head.require(cpus, gpus, Demand(11, gpus_per_worker=1))
    for cpus, gpus in ((1, 8), (9, 1), (17, 0)):
        with pytest.raises(UserError, match="have 8 CPUs, 1 GPU; 16 CPUs; 0 CPUs$") as caught:
            head.require(cpus, gpus)
        assert f"--cpus {cpus} --gpus {gpus}" in caught.value.lines[0]


def test_a_folder_of_this_machine_is_no_store_for_others(tmp_path: Path) -> None:
    assert submit.shared_store("store", Fake({})) == str(Path("store").resolve())
    assert submit.shared_store("s3://bucket/a/", Fake({}, ip="192.0.2.77")) == "s3://bucket/a"
    # A tunnel begins at a loopback address too; its nodes are others.
    for far in (Fake({}, ip="192.0.2.77"), Fake({}, address="http://192.0.2.77:8265")):
        assert submit.shared_store("/shared/store", far) == "/shared/store"
        for uri in ("store", "~/store"):
            with pytest.raises(UserError, match="do not see"):
                submit.shared_store(uri, far)


def test_the_given_address_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert normal_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:1/")
    assert normal_address(None) == "http://head:1" and normal_address("other:2") == "http://other:2"
    with pytest.raises(UserError, match="expected the dashboard's"):
        normal_address("ray://head:10001")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="open the tunnel"):
        Head(f"http://127.0.0.1:{free_port()}")


class Answer(http.server.BaseHTTPRequestHandler):
    """A server that is not Ray."""

    status = 404

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, "not a Ray head"),
        (404, "not a Ray head"),
        (500, "not a Ray head"),
        (401, "got none"),
        (403, "does not accept"),
    ],
)
def test_what_answers_otherwise(server: str, status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(Answer, "status", status)
    with pytest.raises(UserError, match=words) as caught:
        Head(server)
    assert len(caught.value.lines) == 1


def test_a_log_that_arrives_twice_is_written_once() -> None:
    written: list[str] = []
    log = _Log(written.append)
    assert log.take("one\n", 0) == 4
    assert log.take("two\n", 4) == 8
    log.take("one\ntwo\nthr", 0)
    log.take("one\ntwo\nthree\n", 0)
    assert "".join(written) == "one\ntwo\nthree\n"


def test_a_head_that_cannot_answer_is_told_in_a_line() -> None:
    """As when the node of a job's own process is gone, or the head is about to end."""
    trace = 'Traceback (most recent call last):\n  File "x"\nCannot connect to host 10.0.0.7:52365.\n'
    with pytest.raises(UserError) as caught, outside_errors("http://h:1"):
        raise RuntimeError(f"Request failed with status code 500: {trace}.")
    (line,) = caught.value.lines
    assert line == "the head at http://h:1 could not answer (HTTP 500): Cannot connect to host 10.0.0.7:52365"


def test_an_answer_of_500_is_shown(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def _do_request(self, method: str, endpoint: str) -> Any:
            return requests.request(method, f"{server}{endpoint}", timeout=10)

    monkeypatch.setattr(Answer, "status", 500)
    head = object.__new__(Head)
    head.address, head._client = server, Client()
    with pytest.raises(UserError, match=r"could not answer \(HTTP 500\): hello$"):
        head._get("/api/v0/tasks")


class Wire:
    """Ray's client at a connection that breaks."""

    async def tail_job_logs(self, job: str) -> Any:
        yield "one\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")


class Distant(Head):
    """A head that tells of a job what the test says, and then no more."""

    def __init__(self, *told: Job | UserError) -> None:
        self.address = "http://h:1"
        self._client = Wire()
        self._told = iter(told)

    def job(self, job: str) -> Job:
        told = next(self._told)
        if isinstance(told, UserError):
            raise told
        return told

    def logs(self, job: str) -> str:
        raise UserError("its node is gone")


def a_job(code: int | None) -> Job:
    return Job("j", "failed" if code else "running", "", code, None, None, "its node is gone", {})


def test_a_job_whose_log_went_with_its_node_has_an_end() -> None:
    written: list[str] = []
    head = Distant(a_job(None), a_job(None), UserError("busy"), a_job(1), a_job(1))
    assert head.follow("j", written.append).code == 1
    assert "".join(written) == "one\n"


def test_a_job_that_cannot_be_followed_any_more_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", -1.0)
    with pytest.raises(UserError) as caught:
        Distant(a_job(None), UserError("unknown job 'j'")).follow("j", print)
    assert caught.value.lines == ("unknown job 'j'", "job j goes on if the head lives: longtake logs j --follow")


def test_a_driver_names_no_variable_that_its_job_has_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses one that is given twice."""
    import ray

    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    job = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "4", "AWS_REGION": "a"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.setenv("AWS_REGION", "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    launch._attach("127.0.0.1:1", quiet=True)
    passed = asked["runtime_env"]["env_vars"]
    assert passed["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert not {"OMP_NUM_THREADS", "AWS_REGION"} & set(passed)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    launch._attach("127.0.0.1:1", quiet=True)
    assert asked["runtime_env"]["env_vars"]["AWS_REGION"] == "a"


def test_a_driver_hands_on_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows to everyone what a job gives to its workers."""
    import ray

    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "CONTAINER_AUTHORIZATION_TOKEN", "PROFILE"):
        monkeypatch.setenv(f"AWS_{name}", "planted")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    launch._attach("127.0.0.1:1", quiet=True)
    assert asked["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert "planted" not in str(asked)


def test_a_cluster_counts_what_its_autoscaler_may_add(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    labels: dict[str, str] = {}
    there, endless = {"CPU": 8.0}, {"CPU": math.inf, "GPU": math.inf}
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Labels": labels, "Alive": True, "Resources": there}])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert launch._room() == (there, [there]), "started by hand"
    labels["ray.io/node-group"] = "local.cluster.node"
    assert launch._room() == (there, [there]), "hosts of one's own"
    labels["ray.io/node-group"] = "head"
    assert launch._room() == (endless, [there, endless]), "in Kubernetes"
    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "spot": {"resources": {"CPU": 1, "GPU": 2}, "max_workers": 4},
        "data": {"resources": {"CPU": 1}, "max_workers": 3},
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"available_node_types": kinds}))
    total, each = launch._room()
    assert total == {"CPU": 8.0, "GPU": 8}
    assert each == [there, {"CPU": 1, "GPU": 2, "most": 4}, {"CPU": 1, "GPU": 0, "most": 3}]
    launch._check(Demand(8, gpus_per_worker=1), total, each, "the cluster")
    with pytest.raises(UserError, match="8 workers x 2 GPUs = 16 GPUs, the cluster has 8"):
        launch._check(Demand(8, gpus_per_worker=2), total, each, "the cluster")
    with pytest.raises(UserError, match="one worker needs 0.5 CPUs, 8 GPUs on a single node"):
        launch._check(Demand(1, gpus_per_worker=8), total, each, "the cluster")


def test_the_head_is_asked_for_its_kinds_of_nodes_by_a_text_that_needs_nothing(tmp_path: Path) -> None:
    """As the job does it that runs there."""
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "available_node_types: {a: {resources: {GPU: 2}, max_workers: 1}}"
    )
    command = [sys.executable, "-c", Path(autoscaler.__file__).read_text()]
    for home, told in ((tmp_path, [{"CPU": 0, "GPU": 2, "most": 1}]), (tmp_path / "no", None)):
        done = subprocess.run(
            command, env={"HOME": str(home)}, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert json.loads(done.stdout) == told, done.stderr
