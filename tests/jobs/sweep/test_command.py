"""`longtake sweep` whole: two of one seed agree, and what is killed goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from longtake.errors import UserError
from longtake.jobs.sweep import command as job
from longtake.jobs.train import command as train
from longtake.storage import lease
from longtake.storage.store import open_store
from longtake.training import progress_file
from tests.jobs.sweep.toy import RETRIEVAL, ROOT, sweep_of
from tests.jobs.toy_data import shaded_walks, write_dataset


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def command(store: Path | str, *arguments: str) -> list[str]:
    code = "from longtake.jobs.cli import main; main()"
    return [sys.executable, "-c", code, "sweep", *arguments, "--store", str(store)]


def sweep_to_the_end(store: Path | str, *arguments: str) -> str:
    done = subprocess.run(
        command(store, *arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(place: Path) -> pd.DataFrame:
    return open_store(place / "store").table("trials")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_two_sweeps_of_one_seed_have_one_winner(place: Path, bucket: str) -> None:
    """At concurrency 1, on a folder and on S3: the same trials, states, best config; three of eight are pruned."""
    write_dataset(open_store(bucket), "mazes", shaded_walks(16), test=0.2)
    tables, best = [], []
    for uri in (str(place / "store"), bucket):
        assert "best: trial" in sweep_to_the_end(uri, str(place / "sweep.yaml"))
        table = open_store(uri).table("trials")
        assert (table["seconds"] > 0).all()
        tables.append(
            table[["trial", "state", "objective", "step", "frames", "engine.lr", "model.window", "model.d_state"]]
        )
        (sweep,) = set(table["sweep"])
        text = open_store(uri).read_bytes(f"sweeps/{sweep}/best.yaml").decode()
        best.append("\n".join(line for line in text.splitlines() if line[0] != "#"))
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 8 and (tables[0]["state"] == "pruned").sum() >= 3
    assert best[0] == best[1]
    done = tables[0][tables[0]["state"] == "done"]
    lr = {"good": 1.0e-2, "bad": 1.0e-9}[done.loc[done["objective"].idxmin(), "engine.lr"]]
    assert yaml.safe_load(best[0])["engine"]["lr"] == lr
    (place / "best.yaml").write_text(best[0])
    train.main(str(place / "best.yaml"), ["workers=0", "steps=2"], str(place / "store"), dry_run=True)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_sweep_killed_at_random_moments_goes_on(place: Path) -> None:
    """kill -9 of the driver, twice: nothing that ended runs again, nothing is lost, nothing is there twice."""
    moments, kept = random.Random(16), pd.DataFrame()
    wide = "space={engine.lr: {loguniform: [1.0e-5, 1.0e-2]}, model.window: {integer: [1, 3]}}"
    asked = [str(place / "sweep.yaml"), "--set", wide, "--set", "trials=16", "--set", "at_once=2"]
    for _ in range(2):
        killed_after(place, asked, moments.randint(20, 60), moments.uniform(0, 1))
        now = ended(place)
        kept = pd.concat([kept, now.drop(index=kept.index)])
        (sweep,) = set(now["sweep"])
        asked = ["--resume", sweep]
    assert 1 <= len(kept) < 16
    sweep_to_the_end(place / "store", *asked)
    after = ended(place)
    pd.testing.assert_frame_equal(after.loc[kept.index], kept)
    assert after.index.tolist() == list(range(16)) and after["run"].is_unique
    assert set(after["state"]) == {"done", "pruned"}
    study = told_by_optuna(place, sweep)
    assert [{"COMPLETE": "done", "PRUNED": "pruned"}[one.state.name] for one in study] == after["state"].tolist()
    runs = open_store(place / "store").table("runs").set_index("run")
    assert sorted(runs.index[runs["kind"] == "train"]) == sorted(after["run"])
    assert runs.loc[sweep, "status"] == "done"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_sweep_outlives_its_head(place: Path) -> None:
    """kill -9 of Ray's head, its GCS and its raylet: the driver ends, and a resume goes on from what had been done."""
    asked = [str(place / "sweep.yaml"), "--set", "trials=5"]
    # Ray looks for a lost head for a minute.
    with driving(place, asked, {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}) as driver:
        wait_for(driver, lambda: of_trials(place, "state").isin(["done", "pruned"]).sum() >= 2)
        head = [each for each in children(driver) if name_of(each).endswith(("gcs_server", "raylet"))]
        assert len(head) == 2
        for process in head:
            process.kill()
        assert driver.wait(240) != 0
    kept = ended(place)
    assert 2 <= len(kept) < 5
    (sweep,) = set(kept["sweep"])
    sweep_to_the_end(place / "store", "--resume", sweep)
    after = ended(place)
    pd.testing.assert_frame_equal(after.loc[kept.index], kept)
    assert after.index.tolist() == list(range(5)) and after["run"].is_unique


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_trial_outlives_one_of_its_workers(place: Path) -> None:
    """Trials of two workers each, one of which is killed -9: its trial goes on from its checkpoint, the sweep to its
    end."""
    long = "change={workers: 2, steps: 96, checkpoint_every: 4, validation: {every: 4, clips: 2}}"
    asked = [str(place / "sweep.yaml"), *(word for value in (long, "trials=2", "pruning.method=none")
                                          for word in ("--set", value))]  # fmt: skip
    with driving(place, asked) as driver:
        wait_for(driver, lambda: (of_trials(place, "step") >= 8).any())
        workers = [each for each in children(driver) if name_of(each).startswith("ray::RayTrainWorker")]
        assert len(workers) == 2
        workers[-1].kill()
        assert driver.wait(240) == 0
    table, store = trials(place), open_store(place / "store")
    assert table["state"].tolist() == ["done", "done"] and (table["step"] == 96).all()
    told = [progress_file.read(store, run) for run in table["run"]]
    assert [each.restarts for each in told if each] == [1, 0]
    steps = store.table("steps").groupby("run")["step"]
    assert all(sorted(steps.get_group(run)) == list(range(96)) for run in table["run"])


@contextlib.contextmanager
def driving(place: Path, arguments: list[str], more: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process of its own, which is gone at the end, with all that it started."""
    driver = subprocess.Popen(command(place / "store", *arguments), cwd=ROOT, env=environment() | (more or {}))
    started: list[psutil.Process] = []
    try:
        yield driver
    finally:
        if driver.poll() is None:
            started = children(driver)
            driver.kill()
        driver.wait()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def children(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes below a driver, by id."""
    return sorted(psutil.Process(driver.pid).children(recursive=True), key=lambda process: process.pid)


def name_of(process: psutil.Process) -> str:
    """The first word of its command; none if it has just ended."""
    with contextlib.suppress(psutil.Error):
        return next(iter(process.cmdline()), "")
    return ""


def of_trials(place: Path, column: str) -> pd.Series[Any]:
    """A column of the trials that have begun."""
    table = trials(place)
    return table[column] if len(table) else pd.Series([], dtype=object)


def wait_for(driver: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the sweep has ended before that"
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def ended(place: Path) -> pd.DataFrame:
    """The trials that have ended, by number, as the table and Optuna agree, with how often their runs were begun."""
    table, store = trials(place).drop(columns="event_time"), open_store(place / "store")
    (sweep,) = set(table["sweep"])
    over = [number for number, trial in enumerate(told_by_optuna(place, sweep)) if trial.state.is_finished()]
    rows = table[table["state"].isin(["done", "pruned"])].set_index("trial")
    # The study is written first: a kill may come between the two.
    assert set(rows.index) <= set(over) and len(over) - len(rows) <= 1
    return rows.join(store.table("runs").set_index("run")["sessions"], on="run")


def killed_after(place: Path, arguments: list[str], lines: int, seconds: float) -> None:
    """Start a sweep, and kill -9 its driver so long after so many lines have come to the journal."""
    wanted = journal_lines(place) + lines
    driver = subprocess.Popen(command(place / "store", *arguments), cwd=ROOT, env=environment())
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and journal_lines(place) < wanted:
            time.sleep(0.05)
        time.sleep(seconds)
        assert driver.poll() is None, "the sweep has ended before it could be killed"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()


def journal_lines(place: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in place.glob("store/sweeps/*/study.journal"))


def told_by_optuna(place: Path, sweep: str) -> list[optuna.trial.FrozenTrial]:
    """The study as Optuna itself reads it."""
    backend = JournalFileBackend(str(place / f"store/sweeps/{sweep}/study.journal"))
    return optuna.load_study(study_name=sweep, storage=optuna.storages.JournalStorage(backend)).trials


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_sweep_with_all_of_it(place: Path) -> None:
    """Costs, a database, a crash that is tried again, and the winner on test: scored once, however often resumed."""
    url = f"sqlite:///{place}/sweeps.db"
    more = ["trials=4", "against=[carried_bytes]", f"database={url}", "winners={seeds: 2}", RETRIEVAL]
    told = sweep_to_the_end(place / "store", str(place / "sweep.yaml"), *(x for each in more for x in ("--set", each)))
    assert "winner: trial" in told and "over 2 fresh seeds" in told
    table, store = trials(place), open_store(place / "store")
    assert len(table) == 4 and (table["carried_bytes"] > 0).all()
    scores = store.table("scores", where="split == 'test' and system == 'toys'")
    assert scores["run"].nunique() == 2
    (sweep,) = set(table["sweep"])
    again = sweep_to_the_end(place / "store", "--resume", sweep, "--retry-failed", "--set", "trials=5")
    assert "tried again: none, for none crashed" in again
    assert len(trials(place)) == 5
    assert store.table("runs", where="kind == 'train'")["run"].nunique() <= 5 + 4
    unchanged = store.table("scores", where="split == 'test' and system == 'toys'")
    kept = unchanged[unchanged["run"].isin(scores["run"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, scores)


def test_a_sweep_that_runs_is_not_resumed_and_keeps_its_settings(place: Path) -> None:
    sweep, store = sweep_of(place)
    job._record(sweep, store).finish()
    with (
        lease.of_sweep(store, sweep.id),
        pytest.raises(UserError, match=f"sweep {sweep.id} is held by .* end what holds"),
    ):
        job.run(job.earlier(store, sweep.id, []), store)
    with pytest.raises(UserError, match="sampling.seed: 0 then, 1 now; only trials, at_once and winners may change"):
        job.earlier(store, sweep.id, ["sampling.seed=1"])
    assert job.earlier(store, sweep.id, ["trials=20"]).config.trials == 20
    assert job.earlier(store, "latest", []).id == job.earlier(store, sweep.config.name, []).id == sweep.id
    with pytest.raises(UserError, match="unknown run 'nothing'"):
        job.earlier(store, "nothing", [])
