"""A lease: one driver at a time, whatever the clocks say, and nothing written by who has lost it."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from longtake.storage import lease
from longtake.storage.lease import Held, Lease, Lost
from longtake.storage.store import Store, open_store
from longtake.tables.run_record import RunRecord
from longtake.training import checkpoints
from longtake.training.context import LocalContext
from tests.longtake.tuning.toy_sweep import study_of

ROOT = Path(__file__).parents[3]
TAKEN = """
import sys, time
from longtake.storage import lease
from longtake.storage.store import open_store
held = lease.of_run(open_store(sys.argv[1]), "r")
print("held", flush=True)
time.sleep(600)
"""
PAUSED = """
import sys
from longtake.storage import lease
lease.BEAT_S = 0.05
from longtake.storage.store import open_store
from longtake.training.context import LocalContext

def write(folder):
    (folder / "weights").write_text("old")
    print("writing", flush=True)
    sys.stdin.readline()

context = LocalContext(open_store(sys.argv[1]), "r", device="cpu")
context.save(2, lambda folder: (folder / "weights").write_text("whole"))
try:
    context.save(4, write)
    context.finish()
except lease.Lost as error:
    print(error, flush=True)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT_S": 0.05, "SILENCE_S": 0.5, "LOOK_S": 0.05, "SETTLE_S": 0.0}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(tmp_path)
    return open_store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Lease]]:
    """Leases of another machine: this process neither knows their secrets nor can look for their process."""
    held: list[Lease] = []
    yield held
    for each in held:
        each._ended.set()


def far(store: Store, held: list[Lease], beats: bool = True) -> Lease:
    """A lease of another machine, which beats or has been silent since it was taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "_kernel", lambda: "another boot")
        patch.setattr("socket.gethostname", lambda: "far")
        if not beats:
            patch.setattr(lease, "BEAT_S", 600.0)
        held.append(lease.of_run(store, "r"))
        if not beats:
            time.sleep(0.05)  # its thread has begun to wait
    lease._live.discard(held[-1].token.secret)
    return held[-1]


def python(code: str, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment, **more
    )


def test_of_two_at_once_one_holds(quick: None, store: Store) -> None:
    results: list[Lease | Held] = []

    def take() -> None:
        try:
            results.append(lease.of_run(store, "r"))
        except Held as error:
            results.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (held,) = [result for result in results if isinstance(result, Lease)]
    assert len(results) == 4
    held.require()
    held.release()


@pytest.mark.parametrize("skew_s", [-300, 0, 300])
def test_who_lives_elsewhere_is_named_whatever_the_clocks_say(
    quick: None, store: Store, elsewhere: list[Lease], monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew_s)
    far(store, elsewhere)
    with pytest.raises(Held, match=rf"run r is held by process {os.getpid()} on far \(since 20.* UTC .* end it there"):
        lease.of_run(store, "r")


@pytest.mark.parametrize("skew_s", [-300, 300])
def test_who_is_silent_elsewhere_is_taken_over_and_finds_out(
    quick: None, store: Store, elsewhere: list[Lease], monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew_s)
    silent = far(store, elsewhere, beats=False)
    with lease.of_run(store, "r") as held:
        assert held.token.number == 2
        with pytest.raises(Lost, match=f"run r: its lease was taken over by process {os.getpid()} on "):
            silent.require()
    with pytest.raises(Lost):  # also when the other has come to its end
        silent.require()


def test_a_holder_that_was_killed_frees_its_place_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 1e9)
    store = open_store(tmp_path)
    holder = python(TAKEN, str(tmp_path))
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    finally:
        holder.kill()
    while lease._began(holder.pid):  # a zombie, which nobody has waited for, is gone
        time.sleep(0.01)
    with lease.of_run(store, "r") as held:
        assert held.token.number == 2
    holder.wait()


def test_a_holder_that_was_paused_seals_nothing(quick: None, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    paused = python(PAUSED, str(tmp_path), stdin=subprocess.PIPE)
    assert paused.stdout is not None and paused.stdin is not None
    try:
        assert paused.stdout.readline() == "writing\n"
        paused.send_signal(signal.SIGSTOP)
        second = LocalContext(store, "r", device="cpu")
        with second.resume() as folder:
            assert folder is not None and folder.name == "step-000002"
        second.save(4, lambda folder: (folder / "weights").write_bytes(b"newer") and None)
        second.finish()
        paused.stdin.write("\n")
        paused.stdin.flush()
        paused.send_signal(signal.SIGCONT)
        assert re.search(rf"run r: its lease was taken over by process {os.getpid()} on", paused.stdout.readline())
        assert paused.wait(30) == 0
    finally:
        paused.kill()
        paused.wait()
    assert checkpoints.complete(store, "r") == [2, 4] and not checkpoints.damage(store, "r", 4)
    assert store.read_bytes("runs/r/checkpoints/step-000004/weights") == b"newer"


def test_who_has_lost_it_writes_no_event_and_no_trial(quick: None, store: Store, elsewhere: list[Lease]) -> None:
    first = far(store, elsewhere, beats=False)
    record = RunRecord(store, {"run": "r", "kind": "train", "status": "running"}, 600.0, first)
    study = study_of(store, lease=first)
    study.ask()
    with lease.of_run(store, "r"):
        before = {name: store.read_bytes(name) for name in store.find() if "/lease/" not in name}
        for write in (record.finish, study.ask, study.release):
            with pytest.raises(Lost):
                write()
    assert {name: store.read_bytes(name) for name in store.find() if "/lease/" not in name} == before


def test_the_beat_finds_out_without_being_asked(quick: None, tmp_path: Path, elsewhere: list[Lease]) -> None:
    store = open_store(tmp_path)
    first = far(store, elsewhere)
    other = replace(lease.Holder.here(None), secret="another")
    assert lease._create(store, lease._name(first.token.folder, 2), other)
    while first.lost is None:
        time.sleep(0.01)
    context = LocalContext(store, "r", device="cpu", held=first)
    with pytest.raises(Lost):
        context.progress(1, 2)


def test_under_one_sweep_the_later_trial_goes_on(quick: None, store: Store, elsewhere: list[Lease]) -> None:
    with lease.of_sweep(store, "s") as sweep:
        first = lease.of_run(store, "r", within=sweep.token)
        second = lease.of_run(store, "r", within=sweep.token)
        with pytest.raises(Lost):
            first.require()
        with pytest.raises(Held):
            lease.of_run(store, "r")
        older = replace(sweep.token, number=0)
        with pytest.raises(Held):
            lease.of_run(store, "r", within=older)
        second.release()
        first.release()


def test_what_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    lease.of_run(store, "r").release()
    assert store.list("runs") == []
    with lease.of_run(store, "r"):
        store.write_bytes("runs/r/x", b"x")
    assert store.list("runs/r/lease") == ["runs/r/lease/00000001.json"]
    with lease.of_run(store, "r") as held:
        assert store.list("runs/r/lease") == ["runs/r/lease/00000002.json"]
        held.require()


def test_without_hard_links_too(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    store = open_store(tmp_path)
    with lease.of_run(store, "r"), pytest.raises(Held):
        lease.of_run(store, "r")


def test_without_conditional_puts_the_last_one_holds(
    quick: None, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_store(f"{bucket}/{tmp_path.name}")
    put = store.fs.pipe_file

    def plain(path: str, data: bytes, **more: Any) -> None:
        if more.pop("mode", None) == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        put(path, data, **more)

    monkeypatch.setattr(store.fs, "pipe_file", plain)
    with lease.of_run(store, "r") as first:
        other = replace(lease.Holder.here(None), secret="another")
        assert lease._create(store, lease._name(first.token.folder, 1), other)
        with pytest.raises(Lost):
            first.require()


def test_an_answer_that_was_lost_is_no_refusal(
    quick: None, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The put was made, its answer broke off, and the second one hears that there is something."""
    store = open_store(f"{bucket}/{tmp_path.name}")
    put = store.fs.pipe_file

    def twice(path: str, data: bytes, **more: Any) -> None:
        put(path, data, **more)
        put(path, data, **more)

    monkeypatch.setattr(store.fs, "pipe_file", twice)
    lease.of_run(store, "r").require()


class Settings(BaseModel):
    """No settings."""


def test_a_second_record_without_the_lease_is_not_begun(quick: None, store: Store, elsewhere: list[Lease]) -> None:
    first = far(store, elsewhere, beats=False)
    with lease.of_run(store, "r") as held:
        RunRecord.start(store, "r", kind="train", name="n", config=Settings(), lease=held).finish()
        with pytest.raises(Lost):
            RunRecord.start(store, "r", kind="train", name="n", config=Settings(), lease=first)
    assert store.table("runs").sessions.tolist() == [1]


def test_what_else_lies_beside_the_leases_is_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name in ("x.json", "00000009 (1).json", "-0000009.json", "99999999.json"):
        store.write_bytes(f"runs/r/lease/{name}", b'{"released": true}')
    with lease.of_run(store, "r") as first:
        assert first.token.number == 100_000_000
        with pytest.raises(Held):
            lease.of_run(store, "r")


def test_a_lease_that_is_too_deep_is_of_somebody_unknown() -> None:
    assert lease._parse(b"[" * 100_000) == lease.Holder()
