"""`longtake up` whole: a verb works in it, from a folder with packages of other people; a stranger may not; `down`."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from longtake.cluster import warm
from longtake.cluster.process_sessions import end_session, members
from longtake.cluster.waiting_workers import idle_workers
from longtake.jobs.bench.train import written
from longtake.storage.store import open_store
from tests.jobs.test_private_ray import STRANGER, is_loopback, listening

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

TRAIN = "train tiny --set data.dataset=walks --set steps=2 --set checkpoint_every=2 --set validation.every=2".split()
FOREIGN = ("models", "evals", "jobs", "platform", "worlds", "tests")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with foreign packages and a store, and room for Ray; short, as sockets lie under it."""
    with tempfile.TemporaryDirectory(prefix="ltw", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for package in FOREIGN:
            (folder / package).mkdir()
            (folder / package / "__init__.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
        written(open_store(folder / "store"), "walks", edge=32, frames=96)
        yield folder
        for kept in folder.glob(f"lt-*/*/{warm.FILE}"):
            end_session(json.loads(kept.read_text())["pid"])


def longtake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "longtake.jobs", *words],
        cwd=folder,
        env=kept | {"RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_a_verb_works_in_it_and_a_stranger_may_not(place: Path) -> None:
    up = longtake(place, "up")
    assert up.returncode == 0 and up.stdout.startswith("up after "), up.stdout + up.stderr
    (path,) = place.glob(f"lt-*/*/{warm.FILE}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parents[1].stat().st_mode) == 0o700
    head = json.loads(path.read_text())
    again = longtake(place, "up")
    assert again.returncode == 0 and again.stdout.startswith("up already: ") and str(head["pid"]) in again.stdout
    waiting = await_workers(head["pid"], 8)
    trained = longtake(place, *TRAIN, "--store", "store")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "passed over" not in trained.stderr
    assert path.with_name(warm.BUSY).read_text().isdigit(), "it was not lent"
    assert len(list(path.parents[1].glob("r*"))) == 1, "a Ray of its own was started"
    given = [pid for pid in waiting if not psutil.pid_exists(pid)]
    assert len(given) >= 3, "workers that waited were not given to the training, which started its own"
    assert set(open_store(place / "store").table("runs").status) == {"done"}
    assert_refused(place, head["pid"], head["token"])
    down = longtake(place, "down")
    assert down.returncode == 0 and down.stdout.startswith("down: "), down.stdout + down.stderr
    assert not members(head["pid"]) and not list(path.parents[1].glob("r*"))


def await_workers(head: int, count: int) -> set[int]:
    """The workers that wait, once they are so many."""
    deadline = time.monotonic() + 200
    while len(found := set(idle_workers(head))) < count:
        assert time.monotonic() < deadline, f"{len(found)} workers wait, not {count}"
        time.sleep(0.2)
    return found


def assert_refused(place: Path, leader: int, token: str) -> None:
    """All its servers are on loopback and let nobody in who has no token, which is on no command line."""
    family = [psutil.Process(pid) for pid in members(leader)]
    there = listening(family)
    assert there and all(is_loopback(ip) for _, ip, _ in there), there
    assert not [each for each in family if token in " ".join(each.cmdline())]
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, *(str(port) for _, _, port in there)],
        env={"PATH": os.environ["PATH"], "HOME": str(place / "nobody")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert stranger.returncode == 0, stranger.stderr
    answers = json.loads(stranger.stdout)
    assert not [one for one in answers if one[2] == "LET IN"]
    for who in ("gcs", "raylet"):
        assert [one for one in answers if one[1:] == [who, "UNAUTHENTICATED"]], f"the {who} was not reached"
