"""The record of a run: where it came from, how it ended, and that silence is noticed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from longtake.config import Config, config_hash
from longtake.errors import UserError
from longtake.provenance import new_run_id, provenance
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.run_record import RunRecord, cause


class Settings(Config):
    steps: int = 3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def start(store: Store, run: str = "r", kind: str = "train", **more: float) -> RunRecord:
    return RunRecord.start(store, run, kind=kind, name="maze", config=Settings(), seed=5, **more)  # type: ignore[arg-type]


def row(store: Store, run: str = "r") -> dict[str, object]:
    (found,) = tables.read(store, "runs", where=f"run == '{run}'").to_dict("records")
    return {str(name): value for name, value in found.items()}


def test_a_run_is_running_until_it_is_done(store: Store) -> None:
    with start(store, workers=2) as record:
        assert row(store)["status"] == "running"
    found = row(store)
    assert (found["status"], found["kind"], found["name"], found["seed"]) == ("done", "train", "maze", 5)
    assert (found["workers"], found["sessions"]) == (2, 1)
    assert found["config_hash"] == config_hash(Settings())
    assert found["config"] == "steps: 3\n"
    assert {"code_version", "hardware", "versions", "host"} <= set(found)
    assert record.run == "r"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("it broke\nbadly"), "failed", "RuntimeError: it broke"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (UserError("no such thing"), "failed", "UserError: no such thing"),
    ],
)
def test_an_error_ends_the_run_with_its_reason(store: Store, error: BaseException, status: str, reason: str) -> None:
    with pytest.raises(type(error)), start(store):
        raise error
    found = row(store)
    assert (found["status"], found["reason"]) == (status, reason)


def test_the_first_end_stays(store: Store) -> None:
    with start(store) as record:
        record.finish("stopped", "enough")
    assert row(store)["status"] == "stopped"


def test_a_run_started_again_keeps_its_first_start(store: Store) -> None:
    start(store).finish("failed", "x")
    first = row(store)
    start(store).finish()
    again = row(store)
    assert again["started"] == first["started"]
    assert (again["sessions"], again["status"], again["reason"]) == (2, "done", "")
    assert len(tables.parts(store, "runs")) == 1


def test_starting_reads_no_other_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs there are."""
    for number in range(5):
        tables.append(store, "runs", [{"run": f"other{number}", "started": None, "sessions": 1}], f"other{number}")
    start(store).finish()
    read: list[str] = []
    read_many = Store.read_many

    def counted(self: Store, names: list[str]) -> dict[str, bytes | None]:
        read.extend(names)
        return read_many(self, names)

    monkeypatch.setattr(Store, "read_many", counted)
    start(store).finish()
    assert len(read) == 1


def test_the_heart_beats_and_stops(store: Store) -> None:
    record = start(store, heartbeat_s=0.02)
    first = row(store)["event_time"]
    deadline = time.monotonic() + 10
    while row(store)["event_time"] == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert row(store)["event_time"] > first  # type: ignore[operator]
    record.finish()
    last = row(store)
    time.sleep(0.1)
    assert row(store) == last


def test_a_heartbeat_survives_a_store_that_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = start(store, heartbeat_s=0.01)
    calls = []

    def away(*_: object, **__: object) -> None:
        calls.append(1)
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "append", away)
        deadline = time.monotonic() + 10
        while len(calls) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(calls) >= 2
    record.finish()
    assert row(store)["status"] == "done"


def test_run_ids_sort_by_time_and_are_unique() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert [i[:15] for i in ids] == sorted(i[:15] for i in ids)


def test_provenance_says_what_ran() -> None:
    found = provenance()
    assert set(found) == {"code_version", "hardware", "host", "versions"}
    assert json.loads(found["versions"])["python"].startswith("3.")
    assert "GiB" in found["hardware"]


class ActorDied(Exception):
    """As Ray's, which says first that an actor died, then who it was, and at last why."""


ActorDied.__module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("\x1b[31mno room\x1b[0m\nmore"), "ValueError: no room"),
        (
            ActorDied("The actor died because of an error raised in its creation task, \x1b[36mray::W()\x1b[39m\n"
                      "  File 'x'\nOSError: [Errno 28] No space left on device"),
            "OSError: [Errno 28] No space left on device",
        ),
        (
            ActorDied("The actor died unexpectedly before finishing this task.\n\tclass_name: W\n\tpid: 7\n"
                      "The actor is dead because its worker process has died."),
            "The actor is dead because its worker process has died.",
        ),
        (KeyError(), "KeyError"),
    ],
)  # fmt: skip
def test_a_reason_is_the_cause_on_one_line(error: Exception, reason: str) -> None:
    assert cause(error) == reason


def test_what_ray_wrapped_is_told() -> None:
    wrapped = ActorDied("ray::task() failed")
    wrapped.cause = OSError("no such file")  # type: ignore[attr-defined]
    assert cause(wrapped) == "OSError: no such file"
