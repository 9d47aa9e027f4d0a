"""Files of tables that rot, or go: they are named with the way out, or the rows are right; no kill looks like rot."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longtake.errors import UserError
from longtake.storage.sealed_files import SealedFile
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.compaction import compact

WHERE, COLUMNS = "episode > 20 and metric == 'psnr'", ["system", "value"]


def rows(part: int) -> list[dict[str, Any]]:
    more = {"checkpoint": 200, "task": "retrieval", "protocol": "p", "seed": 0, "dataset": "d"}
    every = [(episode, metric) for episode in range(20) for metric in ("psnr", "ssim")]
    return [
        {"run": "r", "system": f"m{episode % 3}", "episode": 20 * part + episode, "frame": frame, "metric": metric}
        | {"value": 17 + episode / 7 + frame, "clips": None if episode % 2 else 3, **more}
        for episode, metric in every
        for frame in range(3)
    ]


def fill(store: Store, compacted: bool) -> None:
    for part in range(3):
        tables.append(store, "scores", rows(part), f"r/cell-{part}")
    if compacted:
        compact(store, "scores")


@pytest.fixture(params=["live", "compacted"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("longtake.tables.compaction.GROUP_ROWS", 100)
    made = open_store(tmp_path)
    fill(made, request.param == "compacted")
    return made


def parquet(store: Store) -> list[Path]:
    return sorted(Path(store.path("tables/scores")).rglob("*.parquet"))


def mutations(data: bytes) -> Iterator[tuple[str, bytes | None]]:
    draw = random.Random(0)
    for at in range(5, len(data), 41):
        flipped = bytearray(data)
        flipped[at] ^= 1 << draw.randrange(8)
        yield f"a bit of byte {at}", bytes(flipped)
    for at in (0, len(data) // 3, len(data) - 60):
        yield f"zeros from {at}", data[:at] + bytes(50) + data[at + 50 :]
        yield f"other bytes from {at}", data[:at] + draw.randbytes(50) + data[at + 50 :]
    yield from (("half", data[: len(data) // 2]), ("nothing", b""), ("a byte more", data + b"\0"), ("deleted", None))
    yield "a byte less", data[:-1]
    yield "another footer's size", data[:-8] + b"\xff\xff\xff\x7f" + data[-4:]


def outcome(store: Store, **asked: Any) -> pd.DataFrame | str:
    try:
        return tables.read(store, "scores", **asked)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("asked", [{}, {"where": WHERE, "columns": COLUMNS}], ids=["whole", "some"])
def test_rot_is_named_or_the_rows_are_right(store: Store, asked: dict[str, Any]) -> None:
    truth = tables.read(store, "scores", **asked)
    path, named = parquet(store)[-1], 0
    data = path.read_bytes()
    for what, mutated in mutations(data):
        path.unlink() if mutated is None else path.write_bytes(mutated)
        found = outcome(store, **asked)
        path.write_bytes(data)
        if isinstance(found, str):
            named += 1
            assert path.name in found and "do the work" in found and "\n" not in found, (what, found)
        else:
            pd.testing.assert_frame_equal(found, truth, obj=what)
    assert named >= 20
    pd.testing.assert_frame_equal(tables.read(store, "scores", **asked), truth)


def test_every_byte_that_is_read_is_checked(store: Store) -> None:
    """All but the four that Parquet begins with, which nobody reads."""
    truth = tables.read(store, "scores")
    path = parquet(store)[-1]
    data = path.read_bytes()
    for at in (0, *range(4, len(data), 43)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        found = outcome(store)
        assert isinstance(found, str) or (at == 0 and found.equals(truth)), at


def test_rot_in_columns_that_are_not_asked_for_disturbs_nobody(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, compacted=True)
    truth = tables.read(store, "scores", columns=["run", "episode"])
    (path,) = parquet(store)
    data = path.read_bytes()
    file = SealedFile(store, path.relative_to(tmp_path).as_posix(), path.stem.rpartition("-")[2])
    pieces = tables.look(store, "scores", None, lambda found: found)
    group = pieces[0].fragment.metadata.row_group(0)
    (chunk,) = [one for one in map(group.column, range(group.num_columns)) if one.path_in_schema == "value"]
    at = chunk.data_page_offset + chunk.total_compressed_size // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    pd.testing.assert_frame_equal(tables.read(store, "scores", columns=["run", "episode"]), truth)
    file.require(pieces[0].fragment.metadata, {0}, {"run"})
    with pytest.raises(UserError, match="is damaged"):
        tables.read(store, "scores", columns=["value"])


def test_a_lost_part_is_named_until_it_is_written_again_or_given_up(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, compacted=False)
    truth = tables.read(store, "scores").drop(columns="event_time")
    gone = parquet(store)[1]
    gone.unlink()
    for asked in ({}, {"part": "r/cell-1"}, {"where": WHERE}):
        found = outcome(store, **asked)
        assert isinstance(found, str) and f"{gone} is gone" in found
    with pytest.raises(UserError, match="is gone"):
        compact(store, "scores")
    assert len(tables.read(store, "scores", part="r/cell-2")) == 120
    assert tables.parts(store, "scores") == ["r/cell-0", "r/cell-2"]  # the work is to be done again
    tables.append(store, "scores", rows(1), "r/cell-1")
    pd.testing.assert_frame_equal(tables.read(store, "scores").drop(columns="event_time"), truth)
    parquet(store)[-1].unlink()
    found = outcome(store)
    assert isinstance(found, str)
    Path(found.rpartition("remove ")[2]).unlink()
    assert len(tables.read(store, "scores")) == 240


def test_all_parts_lost_is_no_empty_table(store: Store) -> None:
    paths = parquet(store)
    for path in paths:
        path.unlink()
    found = outcome(store)
    assert isinstance(found, str) and len(found.splitlines()) == len(paths)


def test_what_was_replaced_is_not_missed(tmp_path: Path) -> None:
    """A writer, and a compaction, that die anywhere leave no mark of a file that nothing stands for."""
    store = open_store(tmp_path)
    calls = ("write_bytes", "remove")
    for step in range(6):
        for work in (lambda: tables.append(store, "scores", rows(0), "a"), lambda: compact(store, "scores")):
            with pytest.MonkeyPatch.context() as patch:
                left = iter([None] * step)
                for name in calls:
                    patch.setattr(Store, name, dying(getattr(Store, name), left))
                with contextlib.suppress(Killed):
                    work()
            tables.read(store, "scores")
            tables.append(store, "scores", rows(1), f"b{step}")
            assert len(tables.read(store, "scores")) >= 120
    compact(store, "scores")
    assert len(list(Path(store.path("tables/scores/.written")).rglob("*-*"))) == 1


class Killed(BaseException):
    pass


def dying(call: Any, left: Iterator[None]) -> Any:
    """The call, a file at a time, until nothing is left of the turns: what a kill midway leaves."""

    def work(self: Store, what: Any, *more: Any) -> None:
        for one in [what] if isinstance(what, str) else what:
            if next(left, Killed) is Killed:
                raise Killed
            call(self, one if isinstance(what, str) else [one], *more)

    return work


@pytest.mark.parametrize("compacted", [False, True])
def test_rot_on_an_object_storage(bucket: str, compacted: bool) -> None:
    store = open_store(f"{bucket}/rot-{compacted}")
    fill(store, compacted)
    truth = tables.read(store, "scores")
    name = next(name for name in reversed(store.find("tables/scores")) if name.endswith(".parquet"))
    data = store.read_bytes(name)
    for what, mutated in list(mutations(data))[:: len(data) // 200] + list(mutations(data))[-6:]:
        store.remove([name]) if mutated is None else store.write_bytes(name, mutated)
        found = outcome(store)
        if isinstance(found, str):
            assert name in found, (what, found)
        else:
            pd.testing.assert_frame_equal(found, truth, obj=what)
    store.write_bytes(name, data)
    pd.testing.assert_frame_equal(
        tables.read(store, "scores", WHERE, COLUMNS), truth.query(WHERE)[COLUMNS].reset_index(drop=True)
    )


def test_a_folder_that_cannot_be_read_is_no_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    fill(store, compacted=False)
    real = os.scandir
    for code in (errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE):

        def failing(path: Any = ".", code: int = code) -> Any:
            if str(path).endswith("tables/scores/r"):
                raise OSError(code, os.strerror(code), str(path))
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", failing)
            for asked in ({}, {"part": "r/cell-1"}):
                found = outcome(store, **asked)
                assert isinstance(found, str) and f"{tmp_path}/tables/scores" in found and "cannot be read" in found
            with pytest.raises(UserError, match="cannot be read"):
                tables.parts(store, "scores")
            with pytest.raises(UserError, match="cannot be read"):
                compact(store, "scores")
    assert len(tables.read(store, "scores")) == 360


def test_a_file_that_cannot_be_read_is_not_called_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Any, *more: Any, **named: Any) -> Any:
        if str(path).endswith(".parquet"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *more, **named)

    real = builtins.open
    monkeypatch.setattr(builtins, "open", failing)
    monkeypatch.setattr("io.open", failing)
    found = outcome(store)
    assert isinstance(found, str) and "cannot be read: Input/output error (EIO)" in found and "damaged" not in found
