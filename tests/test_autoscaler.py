"""Trials that wait bring nodes, which Ray's autoscaler adds to a cluster that has none."""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
from pathlib import Path

import pytest

from longtake.config import load
from longtake.jobs.collect import command as collect
from longtake.jobs.collect.command import CollectConfig
from longtake.storage.store import open_store
from tests import hosts as fleet

pytest.importorskip("vizdoom")
pytestmark = [pytest.mark.hosts, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def test_trials_that_wait_bring_nodes(tmp_path: Path) -> None:
    if reason := fleet.missing():
        pytest.fail(reason) if os.environ.get("LONGTAKE_MUST_RUN") else pytest.skip(reason)
    store = open_store(tmp_path / "store")
    config = load(CollectConfig, "doom-maze-tiny", search=collect.CONFIGS)
    for shard in range(config.shards):
        collect.make_shard(config, store.uri, shard)
    collect.run(config, store)
    line = ["sweep", "tiny", "--set", "trials=4", "--set", "at_once=2", "--store", store.uri]
    with tempfile.TemporaryDirectory(prefix="lta", dir="/tmp") as home:
        token = Path(home, "token")
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        variables = (
            fleet.PLAIN
            | fleet.CODE
            | {
                "PATH": f"{Path(sys.executable).parent}:{fleet.PLAIN['PATH']}",
                "HOME": home,
                "RAY_TMPDIR": home,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_worker_niceness": "0",  # else workers wait for every other process of a busy machine
                "OMP_NUM_THREADS": "1",
            }
        )
        inside = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
        script = 'ip link set lo up && exec "$0" "$@"'
        words = [f"{name}={value}" for name, value in variables.items()]
        cluster = [sys.executable, "-m", "tests.autoscaling", sys.executable, "-m", "longtake.jobs", *line]
        told = fleet.here(["env", "-i", *words, *inside, script, *cluster], 540)
    print("".join(line for line in told.splitlines(keepends=True) if line.startswith(("node ", "the job waits"))))
    assert "the job waits for nodes: there is none to work" in told
    assert len(re.findall(r"(?m)^node \S+ \(1 CPU\) has come; the job goes on with ", told)) >= 2
    trials = store.table("trials")
    assert len(trials) == 4 and set(trials.state) <= {"done", "pruned"}
