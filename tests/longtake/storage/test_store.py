"""The store: one place, whole files or none, errors a user can act on."""

from __future__ import annotations

import errno
import logging
import os
import pickle
from pathlib import Path

import pytest
from s3fs import S3FileSystem

import longtake
from longtake.errors import UserError
from longtake.storage.store import TEMPORARY, Store, open_store
from longtake.tables import table as tables
from tests.longtake.streaming.numbered import numbered


def told(uri: str | Path, *, check: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        open_store(uri, check=check)
    return str(caught.value)


def test_the_package_offers_open_store(tmp_path: Path) -> None:
    assert longtake.open_store(tmp_path) == open_store(str(tmp_path))


def test_opening_touches_nothing(tmp_path: Path) -> None:
    open_store(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checked_store_is_left_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new", check=True)
    assert list((tmp_path / "new").iterdir()) == []
    store.require_exists()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("a/b/c.bin", b"0123456789")
    assert store.read_bytes("a/b/c.bin") == b"0123456789"
    assert store.read_range("a/b/c.bin", 2, 3) == b"234"
    assert store.read_range("a/b/c.bin", 8, 30) == b"89"
    assert store.exists("a/b")
    assert not store.exists("a/x")
    assert store.path("a", "/b/") == f"{tmp_path}/a/b"
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")


def test_listings_are_sorted_names_from_the_root(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name in ("d/2.x", "d/1.x", "d/deep/3.x", "e/4.y"):
        store.write_bytes(name, b"")
    (tmp_path / "d" / f"{TEMPORARY}abc").write_bytes(b"half")
    assert store.list() == ["d", "e"]
    assert store.list("d") == ["d/1.x", "d/2.x", "d/deep"]
    assert store.find("d") == ["d/1.x", "d/2.x", "d/deep/3.x"]
    assert store.glob("*/*.y") == ["e/4.y"]
    assert store.list("none") == store.find("none") == []


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.write_bytes("x", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        store.write_bytes("x", b"new")
    assert store.read_bytes("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_goes_up_and_comes_down(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / ".hidden").write_text("h")
    (source / "deep" / "file").write_text("f")
    store.upload_dir(source, "runs/r/c")
    store.download_dir("runs/r/c", tmp_path / "back")
    assert (tmp_path / "back" / ".hidden").read_text() == "h"
    assert (tmp_path / "back" / "deep" / "file").read_text() == "f"
    with pytest.raises(FileNotFoundError):
        store.download_dir("runs/none", tmp_path / "x")


def test_a_store_travels_as_its_uri(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("x", b"1")
    there = pickle.loads(pickle.dumps(store))
    assert there == store
    assert there.read_bytes("x") == b"1"
    assert len(pickle.dumps(open_store("s3://bucket/prefix"))) < 200


def test_pyarrow_sees_the_same_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("x/y", b"1")
    filesystem, root = store.pyarrow()
    with filesystem.open_input_file(f"{root}/x/y") as file:
        assert file.read() == b"1"


def test_uris_have_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("store").uri == open_store(f"file://{tmp_path}/store/").uri == f"{tmp_path}/store"
    assert open_store("s3://b/p/").uri == "s3://b/p"
    assert open_store("s3://b/").uri == "s3://b"
    assert open_store("s3://b/p").path("tables/x") == "b/p/tables/x"


def test_wrong_uris_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "unknown scheme 'gs'" in told("gs://bucket/x")
    assert "names no bucket" in told("s3://")
    assert "is a file" in told(tmp_path / "file")
    assert "cannot be written" in told(tmp_path / "file" / "below", check=True)
    with pytest.raises(UserError, match="does not exist"):
        open_store(tmp_path / "none").require_exists()


def test_a_read_only_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert "cannot be written: Permission denied" in told(tmp_path, check=True)


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    store = open_store(tmp_path / "not" / "yet")
    free = store.free_bytes()
    assert free is not None
    store.require_space(1)
    with pytest.raises(UserError, match="no space: about"):
        store.require_space(free * 2)
    assert open_store("s3://bucket").free_bytes() is None


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_same_on_s3(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket, check=True)
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    store.write_bytes("a/b", b"0123456789")
    store.write_bytes("a/b", b"9876543210")
    assert store.read_range("a/b", 2, 3) == b"765"
    assert store.list() == ["a"]
    assert store.list("a") == store.find() == store.glob("a/*") == ["a/b"]
    store.download_dir("a", tmp_path / "down")
    store.upload_dir(tmp_path / "down", "up")
    assert pickle.loads(pickle.dumps(store)).read_bytes("up/b") == b"9876543210"
    filesystem, root = store.pyarrow()
    with filesystem.open_input_file(f"{root}/a/b") as file:
        assert file.read() == b"9876543210"
    row = {"run": "r", "step": 1, "loss": 0.5}
    from longtake.tables import table as tables

    for part in ("p0", "p1"):
        tables.append(store, "steps", [row], part)
    assert tables.read(store, "steps")["loss"].tolist() == [0.5]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_missing_bucket_is_told(bucket: str) -> None:
    assert bucket
    assert "no such bucket" in told("s3://nowhere/wm", check=True)


def test_the_store_is_not_its_name() -> None:
    assert repr(Store("/x")) == "Store('/x')"
    assert {Store("/x"), Store("/x")} == {Store("/x")}


def test_keys_are_taken_from_no_uri_and_stand_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="never from a URI") as caught:
        open_store("s3://AKIAPLANTED:planted-secret@bucket/wm")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:planted-secret@127.0.0.1:1")
    with pytest.raises(UserError, match="keys come from AWS_") as other:
        _ = open_store("s3://bucket").fs
    assert "planted" not in str(caught.value).lower() + str(other.value).lower()


def test_no_key_is_in_what_is_written_or_told(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dataset, a table, and the error of a server that is gone."""
    keys = {"AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY000000", "AWS_SECRET_ACCESS_KEY": "planted-secret-" + "s" * 25}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LONGTAKE_S3_PATIENCE_S", "0.2")
    S3FileSystem.clear_instance_cache()
    caplog.set_level(logging.INFO)
    store = open_store(f"{bucket}/keys")
    numbered(f"{bucket}/keys")
    tables.append(store, "steps", [{"run": "r", "step": 1}], part="p")
    found = b"".join(store.read_bytes(name) for name in store.find())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="did not answer") as caught:
        open_store(f"{bucket}/keys").read_bytes("x")
    told = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert len(found) > 1000 and "numbered" in str(store.find())
    assert [value for value in keys.values() if value.encode() in found or value in told] == []
