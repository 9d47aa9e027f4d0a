"""The whole sentence in small: killed at seeded moments in every stage, or on S3, it ends with the same scores."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

import longtake
from longtake.jobs.demo import verdicts

STAGES = ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
"""Headings of the demo: collect, two trainings, evaluate, report."""


def start(store: Path | str, log: Path) -> subprocess.Popen[bytes]:
    """The demo in a process group of its own."""
    command = [
        sys.executable,
        "-c",
        "from longtake.jobs.cli import main; main()",
        "demo",
        "tiny",
        "--store",
        str(store),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env=environment, cwd=log.parent
        )


def finish(store: Path | str, log: Path) -> pd.DataFrame:
    """Run to the end; the final scores, in a fixed order and without what tells runs apart."""
    assert start(store, log).wait(240) == 0, log.read_text()[-3000:]
    scores = longtake.open_store(store).table("scores")
    keys = ["system", "task", "episode", "frame", "metric"]
    return scores[[*keys, "protocol", "checkpoint", "value"]].sort_values(keys).reset_index(drop=True)


def kill_in(stage: str, delay: float, store: Path, log: Path, whom: str) -> str:
    """Start the demo, wait for a stage and a moment more, kill -9 the demo or a training worker; what happened."""
    log.unlink(missing_ok=True)
    demo = start(store, log)
    deadline = time.monotonic() + 200
    while stage not in log.read_text() and demo.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(delay)
    if whom == "worker":
        worker = wait_for_worker(demo.pid)
        worker.kill()
        code = demo.wait(240)
        assert code == 0, log.read_text()[-3000:]
        return f"{stage} +{delay:.1f} s: worker {worker.pid} killed, the demo went on to its end"
    assert demo.poll() is None, f"over before it could be killed:\n{log.read_text()[-3000:]}"
    os.kill(demo.pid, signal.SIGKILL)
    demo.wait(30)
    return f"{stage} +{delay:.1f} s: demo killed"


def wait_for_worker(pid: int) -> psutil.Process:
    """A training worker below a process."""
    for _ in range(600):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended (or is a zombie) between listing and asking
                if "RayTrainWorker" in " ".join(child.cmdline() or [""]):
                    return child
        time.sleep(0.1)
    raise AssertionError("no training worker appeared")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The scores of a demo that nothing happens to, on a folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return finish(folder / "store", folder / "log")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(600)
def test_the_whole_sentence_on_s3_scores_the_same(bucket: str, undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(finish(bucket, tmp_path / "log"), undisturbed, check_exact=True)
    read = pd.read_parquet(f"{bucket}/tables/scores")
    assert len(read) == len(undisturbed)


def test_verdicts_say_who_has_a_memory() -> None:
    """A gain is what is left above the best of all that cannot remember; what is within the window says nothing."""
    means = {"copy_last": 10.0, "context_mean": 14.0, "m": 17.0, "m/wiped": 10.0, "w": 18.0, "twin": 14.5}
    rows = [
        {"system": system, "metric": "psnr", "protocol": "p", "episode": episode, "distance": distance}
        | {"value": value + (system == "m") * (episode - 1) if distance > 4 else 99.0}
        for system, value in means.items()
        for episode in range(3)
        for distance in (3, 5, 7)
    ]
    *lines, gain = verdicts(pd.DataFrame(rows), ["m", "w", "twin"], ["twin"], window=4).splitlines()[1:]
    assert [" ".join(line.split()[:4] + line.split()[-1:]) for line in lines] == [
        "m - copy_last +7.00 better", "m - context_mean +3.00 better", "m - m/wiped +7.00 better",
        "m - twin +2.50 better", "m - w -1.00 undecided",
    ]  # fmt: skip
    assert gain.startswith("Memory of m, above the best of all that have none (twin): +2.50 dB") and "better" in gain


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.timeout(900)
def test_killed_in_every_stage_the_demo_ends_with_the_same_scores(undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    draw = random.Random(2026)
    kills = [kill_in(stage, draw.uniform(0, 3), tmp_path / "b", tmp_path / "b.log", "demo") for stage in STAGES]
    kills.append(kill_in(STAGES[1], 0.0, tmp_path / "c", tmp_path / "c.log", "worker"))
    print("\n".join(kills))
    for store in ("b", "c"):
        again = finish(tmp_path / store, tmp_path / f"{store}.log")
        pd.testing.assert_frame_equal(again, undisturbed, check_exact=True)
