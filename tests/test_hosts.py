"""`make cluster`: the whole sentence on a cluster that `ray up` makes of three hosts over ssh, with its store on S3."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import hosts as fleet
from tests.hosts import CODE, ask, background, here, until

pytestmark = [pytest.mark.hosts, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[1]
HEAD, WORKERS = f"{fleet.NETWORK}.10", [f"{fleet.NETWORK}.11", f"{fleet.NETWORK}.12"]
S3 = f"http://{fleet.LAPTOP}:5000"
STORE = "s3://bucket/longtake"
KEYS = {"AWS_ACCESS_KEY_ID": "planted-id-of-a-key", "AWS_SECRET_ACCESS_KEY": "planted-secret-of-a-key"}
REACH = {"AWS_ENDPOINT_URL": S3, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
LONG = 80
"""Steps of a training that is disturbed."""
CHANGED = {"metadata", "provider", "auth", "setup_commands"}
"""What the test says otherwise in onprem.yaml than a user would: hosts and keys, and no installation."""


def written(laptop: fleet.Hosts) -> Path:
    """onprem.yaml for these hosts: the environment is there already, as ~/venv."""
    text = (ROOT / "platform/clusters/onprem.yaml").read_text()
    shipped = yaml.safe_load(text)
    for before, after in (
        ("CHANGE-ME-head", HEAD),
        ("CHANGE-ME-worker-1", WORKERS[0]),
        ("https://CHANGE-ME'", f"{S3}'"),
    ):
        assert before in text
        text = text.replace(before, after)
    text = text.replace("CHANGE-ME-worker-2", WORKERS[1]).replace("CHANGE-ME-user", "root").replace("CHANGE-ME", "none")
    cluster = yaml.safe_load(text)
    cluster["auth"]["ssh_private_key"] = str(laptop.key)
    installing = [line for line in cluster["setup_commands"] if "git clone" in line or "pip install" in line]
    assert len(installing) == 2
    pins = re.findall(r'"ray\[[^"]+"', installing[1])
    cluster["setup_commands"] = [line for line in cluster["setup_commands"] if line not in installing]
    cluster["setup_commands"].append(f": {pins[0]} is in ~/venv")  # what `cluster check` wants to see pinned
    assert {key for key in shipped if shipped[key] != cluster[key]} == CHANGED and set(shipped) == set(cluster)
    path = laptop.home / "onprem.yaml"
    path.write_text(yaml.dump(cluster))
    return path


@pytest.fixture(scope="module")
def laptop() -> Iterator[fleet.Hosts]:
    """Three hosts and a laptop, which has the bucket's keys in a file, and a moto server."""
    if reason := fleet.missing():
        pytest.fail(reason) if os.environ.get("LONGTAKE_MUST_RUN") else pytest.skip(reason)
    profile = (
        "export RAY_START_EXTRA='--node-ip-address={address} --object-store-memory=100000000'\n"
        '[ $HOSTNAME = head ] || RAY_START_EXTRA="$RAY_START_EXTRA --num-cpus=1"\n'
        "export AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true\n"
    )
    with fleet.hosts({"head": HEAD, "w1": WORKERS[0], "w2": WORKERS[1]}, profile) as made:
        keys = made.home / ".aws" / "credentials"
        keys.parent.mkdir()
        keys.write_text("[default]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in KEYS.items()))
        keys.chmod(0o600)
        with background(made.on_laptop(sys.executable, "-m", "moto.server", "-H", fleet.LAPTOP, "-p", "5000")):
            make = "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')"
            until(lambda: here(made.on_laptop(sys.executable, "-c", make, **REACH), 60), 60)
            yield made


def longtake(laptop: fleet.Hosts, *arguments: str, limit: float = 400, code: int | None = 0, **more: str) -> str:
    return here(
        laptop.on_laptop(sys.executable, "-m", "longtake.jobs", *arguments, **(CODE | REACH | more)), limit, code
    )


def rows(laptop: fleet.Hosts, table: str) -> Any:
    """A table of the store, read on the laptop."""
    import pandas as pd

    place = laptop.home / f"{table}.csv"
    longtake(laptop, "results", table, "--columns", "all", "--store", STORE, "--out", str(place))
    return pd.read_csv(place)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """All that the commands have printed."""
    return []


@pytest.fixture(scope="module")
def cluster(laptop: fleet.Hosts, printed: list[str]) -> Iterator[Path]:
    """The file of a cluster that is up, at the end of a tunnel."""
    longtake(laptop, "cluster", "token")
    path = written(laptop)
    longtake(laptop, "cluster", "check", str(path))
    began = time.monotonic()
    printed.append(here(laptop.on_laptop(*RAY, "up", "-y", "--no-config-cache", str(path)), 240))
    print(f"ray up: {time.monotonic() - began:.0f} s")
    with background(laptop.on_laptop(*RAY, "dashboard", "-p", "8265", str(path))):
        until(lambda: alive(laptop, HEAD, *WORKERS), 240)
        print(f"three nodes: {time.monotonic() - began:.0f} s")
        yield path


@pytest.fixture(scope="module")
def data(laptop: fleet.Hosts, cluster: Path, printed: list[str]) -> None:
    """The dataset of `train tiny`, collected there."""
    submit(laptop, printed, "collect doom-maze-tiny")


def submit(laptop: fleet.Hosts, printed: list[str], line: str) -> str:
    """What a job printed that was waited for."""
    began = time.monotonic()
    printed.append(longtake(laptop, "submit", *line.split(), "--store", STORE))
    assert "succeeded" in printed[-1]
    print(f"{line}: {time.monotonic() - began:.0f} s")
    return printed[-1]


def alive(laptop: fleet.Hosts, *addresses: str) -> dict[str, str]:
    """Node id → address of the living nodes, which are these."""
    nodes = {node["node_id"]: node["node_ip"] for node in ask(laptop, "nodes") if node["state"] == "ALIVE"}
    assert sorted(nodes.values()) == sorted(addresses)
    return nodes


# --- tests, in this order, on one cluster -----------------------------------------------------------------------


def test_closed_to_others(laptop: fleet.Hosts, cluster: Path) -> None:
    """Another host does not reach the dashboard; the tunnel without the token, or with another, is of no use."""
    knock = f"import urllib.request as r; r.urlopen('http://{HEAD}:8265/', timeout=5)"
    assert "refused" in here(laptop.ssh(WORKERS[0], f'~/venv/bin/python -c "{knock}"'), 60, code=1)
    token = (laptop.home / ".ray" / "auth_token").read_text()
    wrong = laptop.home / "wrong"
    wrong.write_text("0" * len(token))
    for key, told in (("/nonexistent", "got none"), (str(wrong), "does not accept")):
        for line in (("submit", "collect", "doom-maze-tiny", "--store", STORE), ("jobs",)):
            assert told in longtake(laptop, *line, code=2, RAY_AUTH_TOKEN_PATH=key)
    assert [job for job in ask(laptop, "jobs") if job.get("submission_id")] == []


def test_the_whole_sentence(laptop: fleet.Hosts, cluster: Path, data: None, printed: list[str]) -> None:
    """Collect, train on two nodes, sweep, evaluate, read the results."""
    submit(laptop, printed, "train tiny --set workers=2")
    ranks = [actor["node_id"] for actor in ask(laptop, "actors") if "TrainWorker" in actor["class_name"]]
    nodes = alive(laptop, HEAD, *WORKERS)
    assert sorted(nodes[rank] for rank in ranks) == WORKERS, "one rank on each"
    submit(laptop, printed, "sweep tiny --set trials=2")
    submit(laptop, printed, "evaluate tiny")
    runs = rows(laptop, "runs")
    assert set(runs.status) <= {"done", "stopped"} and (runs.kind == "train").sum() >= 3
    scores = rows(laptop, "scores")
    assert {"retrieval", "rollout"} <= set(scores.task)


def test_rays_own_command(laptop: fleet.Hosts, data: None, printed: list[str]) -> None:
    """A verb by `ray job submit`, as docs/cluster.md says, with the code that the nodes were set up with."""
    guide = (ROOT / "docs" / "cluster.md").read_text()
    (line,) = re.findall(r"^ray job submit .*?PREFIX$", guide, re.DOTALL | re.MULTILINE)
    assert "train maze --store s3://BUCKET/PREFIX" in line
    line = line.replace("train maze --store s3://BUCKET/PREFIX", f"inspect doom-maze-tiny --store {STORE}")
    printed.append(here(laptop.on_laptop("bash", "-c", line, RAY_AUTH_MODE="token"), 300))
    assert "succeeded" in printed[-1] and "doom-maze-tiny" in printed[-1]


def test_a_cable_is_pulled_for_a_minute(laptop: fleet.Hosts, cluster: Path, data: None, printed: list[str]) -> None:
    """A training on two hosts goes on when one of them is back, and ends with the parameters of an undisturbed one."""
    line = f"train tiny --set workers=2 --set steps={LONG} --set checkpoint_every=10"
    straight = run_of(submit(laptop, printed, line))
    with submitted(laptop, line) as job:
        run = until(lambda: run_of(job.told()), 240)
        reached(laptop, run, 15)
        laptop.cable("w2", plugged=False)
        time.sleep(60)
        stalled = reached(laptop, run, 0)
        assert 15 <= stalled < LONG
        laptop.cable("w2", plugged=True)
        back = time.monotonic()
        assert job.wait(600) == 0, job.told()
    print(f"cable pulled at step {stalled}; done {time.monotonic() - back:.0f} s after it was back")
    print("".join(line for line in job.told().splitlines(keepends=True) if line.startswith("node ")))
    printed.append(job.told())
    assert weights(laptop, run) == weights(laptop, straight)


def test_down_leaves_nothing(laptop: fleet.Hosts, cluster: Path, printed: list[str]) -> None:
    """No Ray on any host, and no secret in anything that was printed, kept as a table or written into a log."""
    shown = json.dumps([ask(laptop, kind) for kind in ("tasks", "actors", "runtime_envs", "jobs")])
    here(laptop.on_laptop(*RAY, "down", "-y", str(cluster)), 240)
    for worker in WORKERS:
        here(laptop.ssh(worker, ". ~/.longtake && ray stop --force"), 60)
    for address in (HEAD, *WORKERS):
        assert "raylet" not in here(laptop.ssh(address, "cat /proc/[0-9]*/comm"), 20), address
    logs = b"".join(
        path.read_bytes() for path in laptop.folder.glob("*/tmp/ray/session_2*/logs/**/*") if path.is_file()
    )
    assert len(logs) > 10_000
    for secret in ((laptop.home / ".ray" / "auth_token").read_text(), *KEYS.values()):
        assert secret not in "".join(printed) + shown and secret.encode() not in logs


# --- a job that is watched ----------------------------------------------------------------------------------------


class Submitted:
    """A job that is followed by a process of the laptop's."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._log = log
        self._process = process

    def told(self) -> str:
        """All that it has printed until now."""
        return self._log.read_text()

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)


@contextlib.contextmanager
def submitted(laptop: fleet.Hosts, line: str) -> Iterator[Submitted]:
    log = laptop.home / "submitted.log"
    command = laptop.on_laptop(
        sys.executable, "-m", "longtake.jobs", "submit", *line.split(), "--store", STORE, **(CODE | REACH)
    )
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield Submitted(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def run_of(told: str) -> str:
    """The run that a training's output names."""
    found = re.findall(r"tiny: run (\S+)", told)
    assert found, told
    return str(found[-1])


def on_store(laptop: fleet.Hosts, code: str, limit: float) -> str:
    """The last line that some code prints, which has the store at hand."""
    named = (
        "from longtake.storage.store import open_store\nfrom longtake.training import checkpoints\n"
        f"from longtake.training import progress_file as progress\nstore = open_store('{STORE}')\n"
    )
    return here(laptop.on_laptop(sys.executable, "-c", named + code, **(CODE | REACH)), limit).splitlines()[-1]


def reached(laptop: fleet.Hosts, run: str, step: int) -> int:
    """The step of a run, once it is this one at least."""
    code = f"""
import time
while (told := progress.read(store, '{run}')) is None or told.step < {step}:
    time.sleep(0.1)
print(told.step)"""
    return int(on_store(laptop, code, 240))


def weights(laptop: fleet.Hosts, run: str) -> str:
    """The hash of a finished training's parameters."""
    path = f"{{checkpoints.folder('{run}', {LONG})}}/model.safetensors"
    return on_store(laptop, f'import hashlib\nprint(hashlib.sha256(store.read_bytes(f"{path}")).hexdigest())', 60)
