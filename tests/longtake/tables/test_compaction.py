"""Compaction: nothing lost, nothing double, whoever writes or reads meanwhile and wherever it is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.storage.store import TEMPORARY, Store, open_store
from longtake.tables import files as table_files
from longtake.tables import schema
from longtake.tables import table as tables
from longtake.tables.compaction import compact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def steps(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"run": "r", "step": number, **more} for number in numbers]


class Killed(BaseException):
    pass


def killed_before_removing(store: Store, table: str, monkeypatch: pytest.MonkeyPatch, left: int = 0) -> None:
    """Compact, and die when all but `left` of the old files are still there."""

    def remove(self: Store, names: list[str]) -> None:
        for name in names[:left]:
            Path(self.path(name)).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", remove)
        with pytest.raises(Killed):
            compact(store, table)


def test_many_parts_become_one_sorted_file(store: Store) -> None:
    for number in (3, 1, 2):
        tables.append(store, "steps", steps(number, loss=number), f"p{number}")
    tables.append(store, "steps", [], "empty")
    before = tables.read(store, "steps")
    done = compact(store, "steps")
    assert (done.files_before, done.files, done.parts, done.rows) == (4, 1, 4, 3)
    pd.testing.assert_frame_equal(tables.read(store, "steps"), before)
    assert tables.parts(store, "steps") == ["empty", "p1", "p2", "p3"]
    mark, name = store.find("tables/steps")
    assert mark == f"tables/steps/.written/{name.split('/')[-1].removesuffix('.parquet')}"
    assert compact(store, "steps").files == 1
    assert store.find("tables/steps") == [mark, name]


def test_what_pandas_reads_is_what_we_read(store: Store, tmp_path: Path) -> None:
    rows = [{"run": "r", "step": 1, "seed": 2**62 + 1, "note": "x", "warm": True, "at": pd.Timestamp.now("UTC")}]
    tables.append(store, "steps", [*rows, {"run": "r", "step": 2}], "a")
    tables.append(store, "steps", steps(0, clips=3), "b")
    compact(store, "steps")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables/steps"), tables.read(store, "steps"))


def test_what_killed_writers_left_goes_when_it_is_old(store: Store, tmp_path: Path) -> None:
    tables.append(store, "steps", steps(1), "r/a")
    folder = tmp_path / "tables" / "steps" / "r"
    for name in ("old", "new"):
        (folder / f"{TEMPORARY}{name}").write_bytes(b"half")
    os.utime(folder / f"{TEMPORARY}old", (1, 1))
    compact(store, "steps")
    assert [path.name for path in folder.iterdir()] == [f"{TEMPORARY}new"]


def test_nothing_and_empty_parts(store: Store) -> None:
    assert compact(store, "steps").files == 0
    tables.append(store, "steps", [], "a")
    assert compact(store, "steps").parts == 1
    assert tables.read(store, "steps").empty
    assert tables.parts(store, "steps") == ["a"]


def test_a_retry_replaces_a_part_that_was_compacted(store: Store) -> None:
    tables.append(store, "steps", steps(1, 2, 3, loss=1.0), "a")
    tables.append(store, "steps", steps(9, loss=1.0), "b")
    compact(store, "steps")
    tables.append(store, "steps", steps(2, loss=5.0), "a")
    expected = [(2, 5.0), (9, 1.0)]
    for _ in range(2):
        frame = tables.read(store, "steps")
        assert list(zip(frame.step, frame.loss, strict=True)) == expected
        compact(store, "steps")


@pytest.mark.parametrize("left", [0, 1, 2])
def test_killed_between_writing_and_removing(store: Store, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    tables.append(store, "steps", steps(1, 2, loss=1.0), "a")
    tables.append(store, "steps", steps(2, 3, loss=2.0), "b")
    before = tables.read(store, "steps")
    killed_before_removing(store, "steps", monkeypatch, left)
    pd.testing.assert_frame_equal(tables.read(store, "steps"), before)
    tables.append(store, "steps", steps(3, loss=4.0), "b")
    killed_before_removing(store, "steps", monkeypatch, left)
    assert tables.read(store, "steps").loss.tolist() == [1.0, 4.0]
    assert compact(store, "steps").files == 1
    assert tables.read(store, "steps").loss.tolist() == [1.0, 4.0]


def test_a_version_written_while_compacting_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The retry comes after the compaction has read and before it removes."""
    tables.append(store, "steps", steps(1, loss=1.0), "a")
    tables.append(store, "steps", steps(2, loss=1.0), "b")
    write = Store.write_bytes

    def meanwhile(self: Store, rel: str, data: bytes) -> None:
        if "compacted" in rel:
            tables.append(store, "steps", steps(1, loss=7.0), "a")
        write(self, rel, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_bytes", meanwhile)
        compact(store, "steps")
    assert tables.read(store, "steps").loss.tolist() == [7.0, 1.0]


def test_two_compactions_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in "abc":
        tables.append(store, "steps", steps(ord(part), loss=1.0), part)
    write = Store.write_bytes
    inner = itertools.count()

    def meanwhile(self: Store, rel: str, data: bytes) -> None:
        if next(inner) == 0:
            compact(store, "steps")
            tables.append(store, "steps", steps(ord("b"), loss=2.0), "b")
        write(self, rel, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_bytes", meanwhile)
        compact(store, "steps")
    assert tables.read(store, "steps").loss.tolist() == [1.0, 2.0, 1.0]
    compact(store, "steps")
    assert tables.read(store, "steps").loss.tolist() == [1.0, 2.0, 1.0]


def test_events_that_tie_keep_their_parts_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "now_ns", lambda: 5)
    for number in range(3):
        tables.append(store, "steps", steps(number, loss=1.0), f"p{number}")
    compact(store, "steps")
    tables.append(store, "steps", steps(1, loss=2.0), "other")
    compact(store, "steps")
    monkeypatch.undo()
    tables.append(store, "steps", [], "p0")
    assert tables.read(store, "steps").step.tolist() == [1, 2]


values = st.one_of(st.none(), st.integers(-(2**60), 2**60))
appends = st.tuples(st.integers(0, 3), st.dictionaries(st.integers(0, 5), values, max_size=4))
events = st.lists(st.one_of(appends, st.sampled_from(["compact", "killed"])), max_size=14)


@settings(deadline=None, max_examples=40)
@given(events)
def test_a_table_is_its_parts_however_often_it_is_compacted(
    tmp_path_factory: pytest.TempPathFactory, done: list[Any]
) -> None:
    """Against a model: parts replace themselves, newest wins, compaction forgets the rows that lost."""
    store = open_store(tmp_path_factory.mktemp("store"))
    model: dict[int, tuple[int, dict[int, int | None]]] = {}

    def winners() -> dict[int, int]:
        ordered = sorted(model, key=lambda part: model[part][0])
        return {step: part for part in ordered for step in model[part][1]}

    for order, event in enumerate(done):
        if isinstance(event, tuple):
            part, rows = event
            tables.append(store, "steps", [{"run": "r", "step": s, "x": x} for s, x in rows.items()], f"p{part}")
            model[part] = (order, rows)
            continue
        if event == "compact":
            compact(store, "steps")
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "remove", lambda *_: None)
                compact(store, "steps")
        won = winners()
        for part, (_, rows) in model.items():
            for step in [step for step in rows if won[step] != part]:
                del rows[step]
    expected = {step: model[part][1][step] for step, part in sorted(winners().items())}
    assert tables.parts(store, "steps") == sorted(f"p{part}" for part in model)
    for where, kept in (
        (None, expected),
        ("step > 2", {s: x for s, x in expected.items() if s > 2}),
        ("x > 0 or step == 1", {s: x for s, x in expected.items() if s == 1 or (x is not None and x > 0)}),
    ):
        if where and "x" in where and not any(x is not None for rows in model.values() for x in rows[1].values()):
            continue  # no number was ever written: there is nothing to compare
        frame = tables.read(store, "steps", where)
        got = {row.step: None if pd.isna(row.x) else row.x for row in frame.itertuples()} if len(frame) else {}
        assert got == kept


def test_a_reader_beside_writers_and_compaction(store: Store) -> None:
    """Rows that were acknowledged before a look are in it, once; and the look never fails."""
    acknowledged: set[int] = set()
    stop = threading.Event()

    def write(base: int) -> None:
        for number in range(40):
            part = f"w{base}/p{number % 5}"
            row = base * 1000 + number % 5
            tables.append(store, "steps", steps(row, loss=float(number)), part)
            acknowledged.add(row)

    def tidy() -> None:
        while not stop.is_set():
            compact(store, "steps")

    writers = [threading.Thread(target=write, args=(base,)) for base in range(4)]
    compactor = threading.Thread(target=tidy)
    for thread in (*writers, compactor):
        thread.start()
    try:
        while any(thread.is_alive() for thread in writers):
            known = set(acknowledged)
            seen = tables.read(store, "steps").step.tolist()
            assert known <= set(seen)
            assert len(seen) == len(set(seen))
    finally:
        stop.set()
        compactor.join(60)
    assert tables.read(store, "steps").loss.tolist() == [35.0, 36.0, 37.0, 38.0, 39.0] * 4


def test_a_file_that_vanishes_is_looked_for_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        tables.append(store, "steps", steps(number), f"p{number}")
    read_many = Store.read_many
    once = itertools.count()

    def meanwhile(self: Store, names: Any) -> dict[str, bytes | None]:
        if next(once) == 0:
            compact(store, "steps")
        return read_many(self, names)

    monkeypatch.setattr(Store, "read_many", meanwhile)
    assert tables.read(store, "steps").step.tolist() == [0, 1, 2]


def test_stretches_that_hold_no_answer_are_skipped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.tables.compaction.GROUP_ROWS", 10)
    tables.append(store, "steps", steps(*range(100), loss=1.0), "a")
    compact(store, "steps")
    (piece,) = tables.look(store, "steps", None, lambda pieces: pieces)
    from longtake.tables import pushdown, where

    tree = where.parse("step >= 95 and loss > 0")
    found = pushdown.condition(tree, piece.fragment.physical_schema, {"step", "loss"})
    assert len(piece.fragment.split_by_row_group(found)) == 1
    assert tables.read(store, "steps", "step >= 95 and loss > 0", ["loss"]).shape == (5, 1)


WRITER = textwrap.dedent("""
    import os, sys
    from longtake.tables import table as tables
    from longtake.tables.compaction import compact
    from longtake.storage.store import open_store
    store, turn, table = open_store(sys.argv[1]), sys.argv[2], []
    acknowledged = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    print("ready", flush=True)
    for number in range(10_000):
        part = f"{turn}-{number}"
        rows = [{"run": part, "step": step, "loss": 0.5} for step in range(200)]
        tables.append(store, "steps", rows, part)
        os.write(acknowledged, f"{part}\\n".encode())
        if number % 7 == 3:
            compact(store, "steps")
""")


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["folder", "S3"])
def test_writers_are_killed(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A kill -9 in the middle of appends and compactions: the table opens and holds what was acknowledged."""
    place = tmp_path / "store" if kind == "folder" else f"{request.getfixturevalue('bucket')}/killed"
    store, told = open_store(place), tmp_path / "acknowledged"
    for turn in range(4):
        kill_one(store, told, turn, after=0.05 + 0.08 * turn)
        check_acknowledged(store, told)
    compact(store, "steps")
    check_acknowledged(store, told)


def kill_one(store: Store, told: Path, turn: int, after: float) -> None:
    command = [sys.executable, "-c", WRITER, store.uri, str(turn), str(told)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
        threading.Event().wait(after)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(30) == -signal.SIGKILL


def check_acknowledged(store: Store, told: Path) -> None:
    """Every acknowledged part whole; of each turn at most one more, which was written and not told yet."""
    known = told.read_text().split() if told.exists() else []
    counts = tables.read(store, "steps", columns=["run", "step"]).groupby("run").step.agg(["size", "nunique"])
    assert set(known) <= set(counts.index)
    assert (counts == 200).all().all()
    more = [part.split("-")[0] for part in set(counts.index) - set(known)]
    assert len(more) == len(set(more))


def test_names_of_files_are_read_back(store: Store) -> None:
    assert schema.LAYOUT == 3
    rows = schema.empty("steps").empty_table()
    file, data = table_files.part_file("steps", "run=a/p.1", 7, rows)
    assert file.name.startswith("tables/steps/run=a/p.1.0000000000000000007-")
    compacted, more = table_files.compacted_file("steps", 8, rows, 10)
    for one, written in ((file, data), (compacted, more)):
        table_files.write(store, one, written)
    found = table_files.files(store, "steps")
    assert sorted(found.present) == sorted(found.written) == [file, compacted]
    assert table_files.versions(store, "steps", "run=a/p.1") == [file]


def test_the_same_on_s3(bucket: str) -> None:
    """Retries, compaction and a kill on an object storage; pandas reads the same through s3fs."""
    store = open_store(f"{bucket}/compaction")
    for number in range(4):
        tables.append(store, "steps", steps(number, loss=1.0), f"r/p{number}")
    tables.append(store, "steps", steps(2, loss=2.0), "r/p2")
    assert len(store.find("tables/steps")) == 2 * 4
    with pytest.MonkeyPatch.context() as patch:
        killed_before_removing(store, "steps", patch)
    assert tables.read(store, "steps").loss.tolist() == [1.0, 1.0, 2.0, 1.0]
    tables.append(store, "steps", steps(3, loss=3.0), "r/p3")
    assert tables.read(store, "steps", part="r/p3").loss.tolist() == [3.0]
    assert compact(store, "steps").files == 1
    assert tables.read(store, "steps", "step >= 2", ["loss"]).loss.tolist() == [2.0, 3.0]
    pd.testing.assert_frame_equal(pd.read_parquet(f"{store.uri}/tables/steps"), tables.read(store, "steps"))
