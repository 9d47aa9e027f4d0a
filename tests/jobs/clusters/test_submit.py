"""`longtake submit` to a real head with tokens: the same loss as here, the job's exit code, logs, jobs, stop."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longtake.cluster.jobs import Head
from longtake.cluster.private_ray import LOOPBACK
from longtake.cluster.wheel import build_wheel
from longtake.config import load
from longtake.errors import UserError
from longtake.jobs.bench.own_head import Ports, own_head
from longtake.jobs.collect import command as collect
from longtake.jobs.collect.command import CollectConfig
from longtake.storage.store import Store, open_store

pytest.importorskip("vizdoom")
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
Longtake = Callable[..., subprocess.CompletedProcess[str]]
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIA" + "PLANTED7" * 2,
    "AWS_SECRET_ACCESS_KEY": "planted-secret-" + "s" * 25,
    "AWS_SESSION_TOKEN": "planted-session-" + "t" * 60,
}
"""In the environment of the head, of its jobs and of the commands; they must be nowhere else."""


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A home of its own (short: sockets lie under it), a token, and no index: nothing may be downloaded."""
    home = Path(tempfile.mkdtemp(prefix="lts", dir="/tmp"))
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LONGTAKE_", "PYTHON"))}
    yield kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(home / "r"),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else its workers wait for every other process of a busy machine
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **KEYS,
    }
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def ports(environment: dict[str, str]) -> Iterator[Ports]:
    """Of a head of two CPUs that wants the token."""
    with own_head(environment, Path(environment["HOME"], "head.log")) as made:
        yield made


@pytest.fixture(scope="module")
def head(environment: dict[str, str], ports: Ports) -> Iterator[str]:
    """Its address; this process has the token too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", environment["RAY_AUTH_TOKEN_PATH"])
        patch.delenv("RAY_AUTH_MODE", raising=False)
        Head(ports.address).nodes()
        yield ports.address


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """All that the commands have printed."""
    return []


@pytest.fixture(scope="module")
def longtake(
    head: str, environment: dict[str, str], printed: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Longtake:
    """Run the command in a folder that is no checkout, with the head's address in the environment."""
    folder = tmp_path_factory.mktemp("here")

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "longtake.jobs", *arguments],
            cwd=folder,
            env=environment | {"RAY_API_SERVER_ADDRESS": head, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"} | more,
            capture_output=True,
            text=True,
            timeout=200,
        )
        printed.extend((done.stdout, done.stderr))
        return done

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the data of `train tiny`, made without Ray."""
    place = open_store(tmp_path_factory.mktemp("store"))
    config = load(CollectConfig, "doom-maze-tiny", search=collect.CONFIGS)
    for shard in range(config.shards):
        collect.make_shard(config, place.uri, shard)
    collect.run(config, place)
    return place


def losses(store: Store, printed: str) -> list[float]:
    """Of the run that a training's output names."""
    (run,) = set(re.findall(r"run (\S+) is done", printed))
    return list(store.table("steps", where=f"run == {run!r}").sort_values("step").loss)


def test_the_same_loss_as_here_bit_by_bit(longtake: Longtake, store: Store) -> None:
    there = longtake("submit", "train", "tiny", "--store", store.uri)
    assert there.returncode == 0, there.stdout + there.stderr
    assert "succeeded" in there.stderr
    here = longtake("train", "tiny", "--store", store.uri)
    assert here.returncode == 0, here.stdout + here.stderr
    assert len(losses(store, here.stdout)) == 20
    assert losses(store, there.stdout) == losses(store, here.stdout)


def test_the_jobs_exit_code_and_its_log(longtake: Longtake, store: Store, head: str) -> None:
    failed = longtake("submit", "train", "tiny", "--set", "data.dataset=nope", "--store", store.uri)
    assert failed.returncode == 2, "the code of a user's error, as from the verb itself"
    assert "error: unknown dataset 'nope'" in failed.stdout
    job = re.findall(r"job (\S+) is submitted", failed.stdout)[0]
    assert "unknown dataset" in longtake("logs", job).stdout
    assert longtake("logs", job, "--follow").returncode == 2
    assert '"code":2' in longtake("jobs", "--format", "json").stdout.replace(" ", "")
    assert "was over already" in longtake("stop", job).stdout
    (known,) = (one for one in Head(head).jobs() if one.id == job)
    assert known.metadata["code_version"] and known.status == "failed"


def test_the_code_that_runs_is_the_one_that_was_sent(
    longtake: Longtake, store: Store, head: str, tmp_path: Path
) -> None:
    """Driver and tasks; the installed packages of this environment would serve as well, and must not."""
    wheel = build_wheel(tmp_path)
    code = (
        "import ray, longtake\n"
        "from longtake.cluster.launch import launch\n"
        "place = lambda: __import__('longtake').__file__\n"
        "with launch(): print(longtake.__file__, ray.get(ray.remote(place).remote()), sep='\\n')\n"
    )
    job = Head(head).submit(["python", "-c", code], job="probe", wheel=wheel)
    told: list[str] = []
    assert Head(head).follow(job, told.append).code == 0
    # Not those of the entrypoint, which the log repeats first.
    assert len(re.findall(rf"(?m)^\S*/{re.escape(wheel.stem)}/longtake/__init__\.py$", "".join(told))) == 2
    assert "".join(told) == Head(head).logs(job)


def test_refused_before_anything_is_sent(
    longtake: Longtake, store: Store, head: str, environment: dict[str, str]
) -> None:
    before = len(Head(head).jobs())
    wrong = Path(environment["HOME"], "wrong")
    wrong.write_text("0" * 64)
    for words, arguments, variables in (
        ("unknown config 'tinny'", ["train", "tinny"], {}),
        ("lower workers to 2", ["train", "tiny", "--set", "workers=3"], {}),
        ("got none", ["train", "tiny"], {"RAY_AUTH_TOKEN_PATH": "/nonexistent"}),
        ("does not accept", ["train", "tiny"], {"RAY_AUTH_TOKEN_PATH": str(wrong)}),
        ("needs 0 CPUs, 1 GPU on a single node", ["--gpus", "1", "train", "tiny"], {}),
    ):
        done = longtake("submit", *arguments, **variables)
        assert done.returncode == 2 and words in done.stderr, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert "# " not in longtake("submit", "train", "tiny", "--dry-run", "--store", store.uri).stderr
    assert len(Head(head).jobs()) == before


def test_the_head_tells_of_nodes_that_may_come(head: str, environment: dict[str, str]) -> None:
    before = {one.id for one in Head(head).jobs()}
    file = Path(environment["HOME"], "ray_bootstrap_config.yaml")
    file.write_text("available_node_types: {spot: {resources: {CPU: 8, GPU: 1}, max_workers: 2}}")
    assert Head(head).kinds_of_nodes() == [{"CPU": 8, "GPU": 1, "most": 2}]
    assert {one.id for one in Head(head).jobs()} == before


def test_a_stopped_training_says_so(longtake: Longtake, store: Store, head: str) -> None:
    sent = longtake("submit", "--detach", "train", "tiny", "--set", "steps=100000", "--store", store.uri)
    job = re.findall(r"job (\S+) is submitted", sent.stdout)[0]
    assert sent.returncode == 0 and not Head(head).job(job).over
    deadline = time.monotonic() + 90
    while not (run := re.findall(r"tiny: run (\S+)", Head(head).logs(job))):
        assert time.monotonic() < deadline, Head(head).logs(job)
        time.sleep(0.5)
    time.sleep(5)  # within Ray Train's start
    assert "stopped" in longtake("stop", job).stdout
    assert list(store.table("runs", where=f"run == {run[0]!r}").status) == ["stopped"]
    assert longtake("logs", job, "--follow").returncode == 1


# --- who may do what, and who sees what ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "0" * 64])
def test_without_the_token_nobody_reads_or_submits(head: str, ports: Ports, key: str | None) -> None:
    import requests

    agent = f"http://127.0.0.1:{ports.agent}"
    job = {"entrypoint": "true", "submission_id": "intruder"}
    before = {one.id for one in Head(head).jobs()}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    asked = {
        f"{method} {url}": requests.request(method, url, json=body, headers=headers, timeout=20).status_code
        for method, url, body in (
            ("GET", f"{head}/api/jobs/", None),
            ("POST", f"{head}/api/jobs/", job),
            ("DELETE", f"{head}/api/jobs/probe", None),
            ("GET", f"{head}/api/jobs/probe/logs", None),
            ("PUT", f"{head}/api/packages/gcs/_ray_pkg_0123456789abcdef.zip", None),
            ("GET", f"{head}/api/v0/nodes", None),
            ("GET", f"{head}/api/v0/tasks?detail=1", None),
            ("GET", f"{head}/api/v0/logs?node_ip=127.0.0.1", None),
            ("GET", f"{head}/nodes?view=summary", None),
            ("GET", f"{head}/api/cluster_status", None),
            ("POST", f"{agent}/api/job_agent/jobs/", job),
            ("GET", f"{agent}/api/job_agent/jobs/probe/logs", None),
        )
    }
    assert set(asked.values()) == {403 if key else 401}, asked
    assert {one.id for one in Head(head).jobs()} == before


def test_without_the_token_nobody_joins(ports: Ports, environment: dict[str, str], head: str) -> None:
    """Not as a driver, either: by Ray's own port, and by that of its client."""
    code = "import ray, sys; ray.init(sys.argv[1]); print('joined', ray.nodes())"
    wrong = Path(environment["HOME"], "nobodys")
    wrong.write_text("0" * 64)
    without, other = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)}
    reach = environment | {LOOPBACK: "0"}  # without it Ray would look for the head at the outer address of this machine
    own, client = f"127.0.0.1:{ports.ray}", f"ray://127.0.0.1:{ports.client}"
    tried = [
        subprocess.Popen(
            [sys.executable, "-c", code, address],
            env=reach | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for address, variables in ((own, without), (own, other), (client, without), (client, other))
    ]
    for process in tried:
        printed, _ = process.communicate(timeout=240)
        assert process.returncode and "joined" not in printed, process.args
    right = {"RAY_AUTH_MODE": "token"}
    done = subprocess.run([sys.executable, "-c", code, own], env=reach | right, capture_output=True, timeout=60)
    assert b"joined" in done.stdout, "nor would they have, had the test been wrong"


def state(head: str, kind: str) -> bytes:
    """A table of Ray's, whole."""
    return str(Head(head)._get(f"/api/v0/{kind}?detail=1&limit=10000")).encode()


def events(head: str) -> bytes:
    """What Ray's state API has as `cluster_events`, from where it takes them.

    It sorts them by a time that Ray's Python writes as text and its C++, once a worker has died in its task, as a
    number: from then on it answers nothing but 500 (Ray 2.60).
    """
    return str(Head(head)._get("/events")).encode()


def test_tables_are_told_after_a_worker_has_died(head: str, tmp_path: Path) -> None:
    """The 500 without end that `cluster_events` gives from then on is Ray's; the error says with what body."""
    code = (
        "import os, ray\n"
        "ray.init(log_to_driver=False)\n"
        "dies = ray.remote(max_retries=0)(lambda: os.kill(os.getpid(), 9))\n"
        "try: ray.get(dies.remote())\n"
        "except ray.exceptions.WorkerCrashedError: print('it died')\n"
    )
    told: list[str] = []
    job = Head(head).submit(["python", "-c", code], job="dies", wheel=build_wheel(tmp_path))
    assert Head(head).follow(job, told.append).code == 0 and "it died" in "".join(told)
    deadline = time.monotonic() + 60  # the dashboard reads the files of events now and then
    while b"'RAY_WORKER_FAILURE'" not in events(head):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    with pytest.raises(UserError, match=r"could not answer \(HTTP 500\): Server got itself in trouble"):
        state(head, "cluster_events")


def test_no_secret_is_written_anywhere(
    longtake: Longtake, store: Store, head: str, environment: dict[str, str], printed: list[str]
) -> None:
    """By all the tests above: in what was printed, the logs and files of Ray, its tables, the store."""
    if not any(job.command.startswith("python -m longtake.jobs train") for job in Head(head).jobs()):
        done = longtake("submit", "train", "tiny", "--set", "steps=2", "--store", store.uri)
        assert done.returncode == 0, done.stdout + done.stderr
    longtake("submit", "train", "tiny", "--dry-run")
    longtake("jobs", "--format", "json")
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    secrets_ = [value.encode() for value in KEYS.values()] + [token.read_bytes()]
    seen = {"printed": "".join(printed).encode()}
    seen["events"] = events(head)
    for kind in ("tasks", "actors", "workers", "nodes", "jobs", "runtime_envs"):
        seen[kind] = state(head, kind)
    assert b"OMP_NUM_THREADS" in seen["runtime_envs"] + seen["jobs"], "where it was to be seen"
    for root in (Path(environment["HOME"]), Path(store.uri)):
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and path != token]
        seen |= {str(path): path.read_bytes() for path in files}
    assert sum("/logs/" in name for name in seen) > 10
    told = [(name, secret[:12]) for name, text in seen.items() for secret in secrets_ if secret in text]
    assert told == []
