"""An error of looking is an error; only what is not there reads as not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.errors import UserError
from longtake.storage.store import Store, open_store

LOOKS: dict[str, Callable[[Store], object]] = {
    "list": lambda store: store.list("d"),
    "find": lambda store: store.find("d"),
    "find_above": lambda store: store.find(""),
    "sizes": lambda store: store.sizes("d"),
    "starting": lambda store: store.starting("d/x"),
    "glob": lambda store: store.glob("d/*/y"),
    "glob_last": lambda store: store.glob("d/*"),
    "download_dir": lambda store: store.download_dir("d", store.path("down")),
    "half_written": lambda store: store.half_written("d", 0),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path)
    made.write_bytes("d/x/y", b"1")
    return made


@pytest.mark.parametrize("code", ["EIO", "EMFILE", "ENFILE", "EACCES", "ESTALE", "ELOOP", "ETIMEDOUT"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_folder_that_cannot_be_listed_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, look: str, code: str
) -> None:
    real, number = os.scandir, getattr(errno, code)

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith("/d"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=rf"cannot be read: .*\({code}\)") as caught:
        LOOKS[look](store)
    assert store.uri in str(caught.value) and len(caught.value.lines) == 1


@pytest.mark.parametrize("code", ["EIO", "EACCES", "ESTALE"])
def test_a_name_that_cannot_be_looked_up_is_told(store: Store, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    number = getattr(errno, code)

    def stat(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(UserError, match=rf"{store.path('d')} cannot be read: .*\({code}\)"):
            store.exists("d")


def test_a_file_that_cannot_be_read_is_told(store: Store) -> None:
    (Path(store.path("folder")) / "below").mkdir(parents=True)
    for read in (lambda: store.read_bytes("folder"), lambda: store.read_many(["folder"])):
        with pytest.raises(UserError, match=r"folder cannot be read: .*\(EISDIR\)"):
            read()


def test_what_is_not_there_is_not_there(store: Store) -> None:
    assert not store.exists("none") and not store.exists("none/below")
    assert store.list("none") == store.find("none") == store.starting("none/x") == store.glob("none/*") == []
    assert store.sizes("none") == {} and store.read_many(["none"]) == {"none": None}
    assert store.glob("*/x/y") == store.glob("d/?/y") == ["d/x/y"] and store.sizes("d") == {"x/y": 1}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_bucket_that_is_gone_or_forbidden_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = open_store("s3://gone/wm"), open_store(bucket)
    assert there.list("d") == there.find("d") == there.glob("d/*") == there.starting("d/x") == []
    assert not there.exists("d") and there.sizes("d") == {}
    for look in (*list(LOOKS.values())[:-2], lambda store: store.exists("d")):
        with pytest.raises(UserError, match="s3://gone: no such bucket"):
            look(gone)

    async def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(type(there.fs), "_patiently", forbidden)
    for look in (*list(LOOKS.values())[:-2], lambda store: store.exists("d")):
        with pytest.raises(UserError, match=r"s3://bucket/wm.* cannot be read: Access Denied"):
            look(there)
