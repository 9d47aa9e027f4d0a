"""The service on Ray: a replica is killed -9 under load, and every session goes on with the bits it would have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from longtake.worlds.remote import RemoteWorld
from tests.worlds.played import exported, seen

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.drill, pytest.mark.timeout(580)]
SESSIONS, STEPS = 32, 20
START_S = 400


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """URL, token and process of a service with two replicas."""
    (tmp_path / "store").mkdir()
    line = ["serve", exported(tmp_path / "tiny", trained=200), "--store", str(tmp_path / "store"), "--port", "0"]
    line += ["--min-replicas", "2", "--max-replicas", "2", "--cpus", "0.5", "--token-file", str(tmp_path / "token")]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "longtake.jobs", *line], stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield _url(driver, tmp_path / "log"), (tmp_path / "token").read_text().strip(), psutil.Process(driver.pid)
    finally:
        driver.terminate()
        try:
            driver.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)


def _url(driver: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and driver.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("it answers at "):
                return line.removeprefix("it answers at ")
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def walk(url: str, token: str, seed: int, steps: threading.Semaphore | None = None) -> list[np.ndarray]:
    world = RemoteWorld.connect(url, token, seed=seed, patience_s=200)
    frames, pose = seen(4, seed=seed)
    world.observe(frames, pose=pose)
    made = []
    for number in range(STEPS):
        made.append(world.step(("forward", "turn left")[(number + seed) % 2]))
        if steps is not None:
            steps.release()
    return made


def replicas(driver: psutil.Process) -> list[psutil.Process]:
    return [child for child in driver.children(recursive=True) if "ServeReplica:longtake:world" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_every_session_goes_on_with_the_same_bits(service: tuple[str, str, psutil.Process]) -> None:
    url, token, driver = service
    assert requests.get(url, timeout=60).status_code == 401
    victim, other = replicas(driver)
    steps = threading.Semaphore(0)
    with ThreadPoolExecutor(SESSIONS) as pool:
        walks = [pool.submit(walk, url, token, seed, steps) for seed in range(SESSIONS)]
        for _ in range(SESSIONS * STEPS // 3):
            assert steps.acquire(timeout=200)
        victim.kill()
        made = [one.result() for one in walks]
    alive = {one.pid for one in replicas(driver)}
    assert other.pid in alive and victim.pid not in alive
    for seed in (0, SESSIONS - 1):
        assert np.array_equal(walk(url, token, seed), made[seed]), "undisturbed it makes other frames"
    metrics = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=60).json()
    assert metrics["sessions"] == SESSIONS + 2 and metrics["frames_per_s"] > 0
