"""A SIGTERM ends a training with a checkpoint of the step that it is at, one line, and exit code 143."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from longtake.cluster import preemption
from longtake.config import load
from longtake.errors import PREEMPTED, UserError
from longtake.jobs.exit_codes import ended
from longtake.jobs.train import command as train
from longtake.jobs.train.config import TrainConfig
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints, progress_file
from longtake.training.context import LocalContext
from tests.corruption.base import TOY, write_shards


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "toy.yaml").write_text(TOY)
    made = open_store(tmp_path / "store")
    write_shards(made, "mazes").finalize(3)
    return made


@pytest.fixture(autouse=True)
def unheard() -> Iterator[None]:
    """Each test hears its own SIGTERM alone, and leaves the process's handlers as they were."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGALRM)]
    yield
    preemption._told.clear()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before:
        signal.signal(number, handler)


def config(folder: Path) -> TrainConfig:
    return load(TrainConfig, folder / "toy.yaml", ["steps=6", "checkpoint_every=6"], search=train.CONFIGS)


def weights(store: Store, run: str) -> dict[str, list[float]]:
    with checkpoints.opened(store, run, 6) as folder:
        return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_a_training_saves_where_it_is_and_goes_on_bitwise(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = train.train(config(tmp_path), store)
    real = LocalContext.progress

    def told(self: LocalContext, step: int, of: int, **numbers: float) -> None:
        real(self, step, of, **numbers)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LocalContext, "progress", told)
    preemption.handle()
    assert ended(lambda: train.train(config(tmp_path), store)) == PREEMPTED
    run = max(store.table("runs").run)
    told_line = capsys.readouterr().err.splitlines()[-1]
    assert told_line == f"preempted: run {run}: ended by SIGTERM at step 3, which is saved: go on with --resume {run}"
    assert store.table("runs", where=f"run == {run!r}").status.tolist() == ["preempted"]
    assert checkpoints.complete(store, run) == [3]
    monkeypatch.setattr(LocalContext, "progress", real)
    preemption._told.clear()
    assert train.train(config(tmp_path), store, resume=run) == run
    assert weights(store, run) == weights(store, undisturbed)
    assert store.table("steps", where=f"run == {run!r}").step.tolist() == list(range(6))


def test_without_a_training_it_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    preemption.handle()
    assert ended(verb) == PREEMPTED
    assert capsys.readouterr().err.startswith("preempted: ended by SIGTERM")


@pytest.mark.parametrize("how", ["a second one", "no time left"])
def test_what_takes_too_long_is_not_waited_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_GRACE_S", "600" if how == "a second one" else "0.1")

    def verb() -> None:
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.is_told()
            if how == "a second one":
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    preemption.handle()
    assert ended(verb) == PREEMPTED


def test_a_job_of_a_cluster_that_is_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")

    def verb() -> None:
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    preemption.handle()
    assert ended(verb) == PREEMPTED


def test_ray_does_not_keep_the_handler() -> None:
    preemption.handle()
    with preemption.kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is preemption._handle


def test_the_first_rank_hears_of_it_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_file, "LOOK_S", 0.0)
    monkeypatch.setattr(progress_file, "INTERVAL_S", 0.01)
    store = open_store(tmp_path)
    progress_file.ask_to_end(store, "r", "another session")
    teller = progress_file.ProgressWriter(store, "r", "mine")
    time.sleep(0.5)
    assert not teller.is_asked_to_end
    progress_file.ask_to_end(store, "r", "mine")
    deadline = time.monotonic() + 60
    while not teller.is_asked_to_end:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    teller.close()
    progress_file.forget_request(store, "r")
    assert not store.exists("runs/r/end.json")


def test_a_grace_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_GRACE_S", "soon")
    with pytest.raises(UserError, match="LONGTAKE_GRACE_S: 'soon' is no number of seconds"):
        preemption.grace_s()
