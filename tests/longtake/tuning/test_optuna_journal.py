"""A sweep's journal: only a torn last write is forgiven; no other damage reads as fewer trials, or changes the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tuning.optuna_journal import StoreJournalBackend, _read
from longtake.tuning.space import Axis
from tests.longtake.tuning.toy_sweep import study_of

REL = "sweeps/s/study.journal"


def played(place: Path) -> Store:
    """A store with a sweep of three trials, two of which have ended."""
    store = open_store(place)
    study = study_of(store)
    for _ in range(3):
        study.ask()
    for number in range(2):
        study.report(number, 8, float(number), frames=1, seconds=1.0)
        study.finish(number)
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return played(tmp_path_factory.mktemp("played")).read_bytes(REL)


def without_sums(data: bytes) -> bytes:
    """A journal as it was written before its lines had sums."""
    logs = [json.loads(line) for line in data.splitlines()]
    lines = [json.dumps({k: v for k, v in log.items() if k != "sum"}, separators=(",", ":")) for log in logs]
    return "".join(f"{line}\n" for line in lines).encode()


def test_a_flip_anywhere_is_noticed(whole: bytes) -> None:
    kept = _read(whole, "sweeps/s/j").logs
    assert len(kept) > 20
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(UserError, match=f"sweeps/s/j, line {min(whole[:at].count(10) + 1, len(kept))}: "):
            _read(bytes(damaged), "sweeps/s/j")


def test_lines_that_are_lost_doubled_or_moved_are_noticed(whole: bytes) -> None:
    lines = whole.splitlines(keepends=True)
    for at in range(1, len(lines) - 1):
        rest = lines[:at] + lines[at + 1 :]
        for wrong in (rest, [*lines[:at], lines[at], *lines[at:]], [*rest[: at + 1], lines[at], *rest[at + 1 :]]):
            with pytest.raises(UserError, match=rf"line {at + 1}: |line {at + 2}: "):
                _read(b"".join(wrong), "sweeps/s/j")
    for wrong in (lines[1:], [b"\n", *lines], [b"[]\n", *lines], [*lines, b"{}\n"]):
        with pytest.raises(UserError, match="line "):
            _read(b"".join(wrong), "sweeps/s/j")


def test_a_cut_anywhere_loses_the_last_write_alone(whole: bytes) -> None:
    """Or is refused by the table, which is written later: see below."""
    logs = _read(whole, "sweeps/s/j").logs
    for at in range(len(whole)):
        read = _read(whole[:at], "sweeps/s/j").logs
        assert read == logs[: len(read)]
        assert not read or read[-1]["left"] == 0
        missing = logs[len(read) : whole[:at].count(10)]
        assert all(log["left"] for log in missing)


@pytest.mark.parametrize("line", [1, 5, -1])
def test_a_damaged_line_stops_and_the_file_stays(tmp_path: Path, line: int) -> None:
    store = played(tmp_path)
    lines = store.read_bytes(REL).splitlines(keepends=True)
    lines[line] = lines[line][:20] + b"\0" + lines[line][21:]
    Path(store.path(REL)).write_bytes(b"".join(lines))
    number = line % len(lines) + 1
    with pytest.raises(UserError, match=rf"study.journal, line {number}: .*left as it is.*warm_start=\[s\]"):
        study_of(store)
    assert store.read_bytes(REL) == b"".join(lines)
    assert store.list("sweeps/s") == [REL]


def test_a_torn_write_is_kept_beside_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = played(tmp_path)
    before = store.read_bytes(REL)
    study_of(store).ask()
    torn = store.read_bytes(REL)[: len(before) + 100]
    Path(store.path(REL)).write_bytes(torn)
    journal = StoreJournalBackend(store, REL)
    assert store.read_bytes(REL) == torn
    assert "its last write was torn (100 bytes): not made" in caplog.text
    assert journal.is_torn
    study = study_of(store)
    assert len(study) == 3
    study.ask()
    assert store.read_bytes(f"{REL}.torn") == torn[len(before) :]
    assert store.read_bytes(REL).startswith(before)
    assert len(study_of(store)) == 4


def test_only_the_line_end_is_missing(tmp_path: Path) -> None:
    store = played(tmp_path)
    data = store.read_bytes(REL)
    Path(store.path(REL)).write_bytes(data[:-1])
    study = study_of(store)
    assert [row["state"] for row in study.rows()] == ["done", "done", "preempted"]
    study.ask()
    assert store.read_bytes(REL).startswith(data)


@pytest.mark.parametrize("lines", [0, 1, 8, 12])
def test_a_journal_that_lost_its_end_knows_less_than_the_table(tmp_path: Path, lines: int) -> None:
    store = played(tmp_path)
    short = b"".join(store.read_bytes(REL).splitlines(keepends=True)[:lines])
    Path(store.path(REL)).write_bytes(short)
    with pytest.raises(UserError, match=r"sweep s: its study has lost \d trials that the table .*nothing was changed"):
        study_of(store)
    assert store.read_bytes(REL) == short


def test_a_journal_that_is_gone_is_no_new_sweep(tmp_path: Path) -> None:
    store = played(tmp_path)
    Path(store.path(REL)).unlink()
    with pytest.raises(UserError, match="its study has lost 3 trials"):
        study_of(store)
    assert not store.exists(REL)


def test_a_journal_of_before_is_read_and_gets_sums(tmp_path: Path) -> None:
    store = played(tmp_path)
    whole = store.read_bytes(REL)
    Path(store.path(REL)).write_bytes(without_sums(whole))
    study = study_of(store)
    assert len(study) == 3
    study.ask()
    assert store.read_bytes(REL).startswith(whole)
    assert len(study_of(store)) == 4


def test_a_flip_in_a_journal_of_before_loses_no_line(whole: bytes) -> None:
    old = without_sums(whole)
    count = len(_read(old, "sweeps/s/j").logs)
    for at in range(len(old)):
        damaged = bytearray(old)
        damaged[at] ^= 1 << at % 8
        try:
            read = _read(bytes(damaged), "sweeps/s/j").logs
        except UserError as error:
            assert "sweeps/s/j, line " in str(error)
        else:
            assert len(read) == count


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (b'"study_id":0', b'"study_ie":0'),
        (b'"user_attr":{"run"', b'"user_attr":{"ruo"'),
    ],
)
def test_a_changed_line_of_before_is_one_error(tmp_path: Path, was: bytes, now: bytes) -> None:
    store = played(tmp_path)
    changed = without_sums(store.read_bytes(REL)).replace(was, now, 1)
    Path(store.path(REL)).write_bytes(changed)
    with pytest.raises(UserError, match=r"a line of it was changed|its study has lost 1 trials"):
        study_of(store)
    assert store.read_bytes(REL) == changed


def test_another_writer_is_noticed(tmp_path: Path) -> None:
    store = played(tmp_path)
    one, other = study_of(store), study_of(store)
    one.ask()
    before = store.read_bytes(REL)
    with pytest.raises(UserError, match="another process has written to it"):
        other.ask()
    assert store.read_bytes(REL) == before


def test_a_trial_for_which_no_point_is_left_ends(tmp_path: Path) -> None:
    """Two drivers of one sweep left one: whoever resumed it searched for ever."""
    axes = {"good": Axis(choice=[True, False])}
    store = open_store(tmp_path)
    study = study_of(store, space=axes)
    study.ask()
    study.ask()
    with study._saved():
        study._study.ask()
        study._trials = lambda: []  # type: ignore[method-assign]  # the driver dies before it writes the table
    rows = study_of(store, space=axes).rows()
    assert [(row["state"], row["reason"]) for row in rows[2:]] == [("failed", "no point of the space is left for it")]
    assert len({row["run"] for row in rows}) == 3
    assert len(tables.read(store, "trials")) == 3
    with pytest.raises(UserError, match="all 2 points of its space have been tried"):
        study_of(store, space=axes).ask()
