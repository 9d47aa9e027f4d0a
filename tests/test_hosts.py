"""`make cluster`: the whole sentence on a cluster that `ray up` makes of three hosts over ssh, with its store on S3."""

from __future__ import annotations

import json
import os
import re
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
    return here(laptop.on_laptop(sys.executable, "-m", "jobs", *arguments, **(CODE | REACH | more)), limit, code)


def rows(laptop: fleet.Hosts, table: str) -> Any:
    """A table of the store, read on the laptop."""
    import pandas as pd

    place = laptop.home / f"{table}.csv"
    longtake(laptop, "results", table, "--columns", "all", "--store", STORE, "--out", str(place))
    return pd.read_csv(place)


def test_the_whole_sentence_on_three_hosts(laptop: fleet.Hosts) -> None:
    longtake(laptop, "cluster", "token")
    token = (laptop.home / ".ray" / "auth_token").read_text()
    cluster = str(written(laptop))
    longtake(laptop, "cluster", "check", cluster)
    began = time.monotonic()
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    up = here(laptop.on_laptop(*ray, "up", "-y", "--no-config-cache", cluster), 180)
    print(f"ray up: {time.monotonic() - began:.0f} s")
    try:
        with background(laptop.on_laptop(*ray, "dashboard", "-p", "8265", cluster)):
            nodes = until(lambda: all_three(laptop), 120)
            print(f"three nodes: {time.monotonic() - began:.0f} s")
            closed_to_others(laptop, token)
            printed = up + sentence(laptop, nodes)
            shown = json.dumps([ask(laptop, kind) for kind in ("tasks", "actors", "runtime_envs", "jobs")])
    finally:
        here(laptop.on_laptop(*ray, "down", "-y", cluster), 180)
        for worker in WORKERS:
            here(laptop.ssh(worker, ". ~/.longtake && ray stop --force"), 60)
    for address in (HEAD, *WORKERS):
        assert "raylet" not in here(laptop.ssh(address, "cat /proc/[0-9]*/comm"), 20), address
    logs = b"".join(
        path.read_bytes() for path in laptop.folder.glob("*/tmp/ray/session_2*/logs/**/*") if path.is_file()
    )
    assert len(logs) > 10_000
    for secret in (token, *KEYS.values()):
        assert secret not in printed + shown and secret.encode() not in logs


def all_three(laptop: fleet.Hosts) -> dict[str, str]:
    """Node id → address."""
    nodes = {node["node_id"]: node["node_ip"] for node in ask(laptop, "nodes") if node["state"] == "ALIVE"}
    assert set(nodes.values()) == {HEAD, *WORKERS}
    return nodes


def closed_to_others(laptop: fleet.Hosts, token: str) -> None:
    """Another host does not reach the dashboard; the tunnel without the token, or with another, is of no use."""
    knock = f"import urllib.request as r; r.urlopen('http://{HEAD}:8265/', timeout=5)"
    assert "refused" in here(laptop.ssh(WORKERS[0], f'~/venv/bin/python -c "{knock}"'), 30, code=1)
    assert "got none" in longtake(laptop, "jobs", code=2, RAY_AUTH_TOKEN_PATH="/nonexistent")
    wrong = laptop.home / "wrong"
    wrong.write_text("0" * len(token))
    line = ("submit", "collect", "doom-maze-tiny", "--store", STORE)
    assert "does not accept" in longtake(laptop, *line, code=2, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert [job for job in ask(laptop, "jobs") if job.get("submission_id")] == []


def sentence(laptop: fleet.Hosts, nodes: dict[str, str]) -> str:
    """Collect, train on two nodes, sweep, evaluate, read the results; returns all that was printed."""
    printed = []
    for line in (
        "collect doom-maze-tiny",
        "train tiny --set workers=2",
        "sweep tiny --set trials=2",
        "evaluate tiny",
    ):
        began = time.monotonic()
        printed.append(longtake(laptop, "submit", *line.split(), "--store", STORE))
        assert "succeeded" in printed[-1]
        print(f"{line}: {time.monotonic() - began:.0f} s")
        if line.startswith("train"):
            ranks = [actor["node_id"] for actor in ask(laptop, "actors") if "TrainWorker" in actor["class_name"]]
            assert sorted(nodes[rank] for rank in ranks) == WORKERS, "one rank on each"
    runs = rows(laptop, "runs")
    assert set(runs.status) <= {"done", "stopped"} and (runs.kind == "train").sum() >= 3
    scores = rows(laptop, "scores")
    assert {"retrieval", "rollout"} <= set(scores.task)
    return "".join(printed)
