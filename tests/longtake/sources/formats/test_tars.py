"""Tars: every feature of the format is read as it was packed, or refused by name; no file's bytes are another's."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.sources.formats import formats, tars
from longtake.sources.formats.base import Framing, Refused, attempt
from longtake.storage.store import open_store
from tests.longtake.sources.formats import foreign_files as files

BLOCK = tars.BLOCK


def read(folder: Path, tar: str = "x.tar") -> tuple[dict[str, bytes], dict[str, str], str]:
    """The bytes of every member, the refusals, and what is wrong with the tar."""
    place = open_store(folder)
    found = tars.contents(place, tar, (folder / tar).stat().st_size)
    return {one.name: tars.read(place, tar, one) for one in found.members}, found.refused, found.damage


def gnu_tar(folder: Path, *options: str, members: tuple[str, ...] = ("a", "b")) -> None:
    command = ["tar", *options, "-cf", "x.tar", *members]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


def holes(kind: str) -> bytes:
    """Bytes whose zeros tar stores as holes: inside, before, behind, everywhere; so many that maps go on."""
    full = np.random.default_rng(0).integers(1, 256, 4096, dtype=np.uint8).tobytes()
    none = bytes(8192)
    kinds = {
        "inside": full + none + full + b"end",
        "before": none + full,
        "behind": full + none,
        "nothing but": none + none,
        "thirty": b"".join([full, none] * 30) + b"end",
        "of two hundred": b"".join([none, full] * 200),
        "without": full + b"x",
    }
    return kinds[kind]


SPARSE = {
    "GNU": ("--format=gnu",),
    "PAX 0.0": ("--format=pax", "--sparse-version=0.0"),
    "PAX 0.1": ("--format=pax", "--sparse-version=0.1"),
    "PAX 1.0": ("--format=pax", "--sparse-version=1.0"),
}


@pytest.mark.parametrize("version", SPARSE)
@pytest.mark.parametrize("kind", ["inside", "before", "behind", "nothing but", "thirty", "of two hundred", "without"])
def test_sparse_files_are_read_through_their_maps(tmp_path: Path, version: str, kind: str) -> None:
    (tmp_path / "a").write_bytes(holes(kind))
    (tmp_path / "b").write_bytes(b"the next one" * 1000)
    gnu_tar(tmp_path, "-S", "--hole-detection=raw", *SPARSE[version])
    if kind != "without":
        assert (tmp_path / "x.tar").stat().st_size < len(holes(kind)) + 4 * 10240
    found, refused, damage = read(tmp_path)
    assert (refused, damage) == ({}, "")
    assert found == {"a": holes(kind), "b": b"the next one" * 1000}


@pytest.mark.parametrize("version", SPARSE)
def test_an_episode_with_black_frames_is_the_one_that_was_packed(tmp_path: Path, version: str) -> None:
    frames = np.zeros((40, 64, 64, 3), np.uint8)
    frames[0], frames[20], frames[39] = 200, 100, 250
    for number, pictures in enumerate((frames, files.calm(1, 40, 64))):
        (tmp_path / f"{number}.frames.npy").write_bytes(files.npy(pictures))
        (tmp_path / f"{number}.state.npz").write_bytes(files.npz(**files.states(number, 40)))
    names = tuple(sorted(os.listdir(tmp_path)))
    gnu_tar(tmp_path, "-S", "--hole-detection=raw", *SPARSE[version], members=names)
    config = formats()["webdataset"].config(lead="into")
    listing = formats()["webdataset"].listing(config, open_store(tmp_path))
    read_one = formats()["webdataset"].read
    made = [
        attempt(lambda item=item: read_one(config, open_store(tmp_path), item), Framing()) for item in listing.items
    ]
    np.testing.assert_array_equal(made[0].frames, frames)
    np.testing.assert_array_equal(made[1].frames, files.calm(1, 40, 64))


@pytest.mark.parametrize("version", SPARSE)
def test_a_map_that_lies_is_refused(tmp_path: Path, version: str) -> None:
    """Whatever digit of the headers changes: the bytes are those that were packed, or somebody is told."""
    (tmp_path / "a").write_bytes(holes("inside"))
    (tmp_path / "b").write_bytes(b"b" * 600)
    gnu_tar(tmp_path, "-S", "--hole-detection=raw", *SPARSE[version])
    raw = (tmp_path / "x.tar").read_bytes()
    truth = {"a": holes("inside"), "b": b"b" * 600}
    digits = [at for at in range(4 * BLOCK) if raw[at : at + 1].isdigit()]
    for at in digits[::3]:
        changed = raw[:at] + (b"7" if raw[at : at + 1] != b"7" else b"1") + raw[at + 1 :]
        (tmp_path / "x.tar").write_bytes(with_checksums(changed))
        try:
            found, refused, damage = read(tmp_path)
        except Refused:
            continue
        wrong = {name: data for name, data in found.items() if truth.get(name) != data}
        # A size or an offset that is as good as the true one cannot be told from it; an overrun can.
        assert refused or damage or all(len(data) <= 2**21 and b"b" * 600 not in data[:600] for data in wrong.values())


def with_checksums(raw: bytes) -> bytes:
    """The headers with checksums that fit: the lie is a lie of the writer, not rot."""
    out = bytearray(raw)
    for at in range(0, len(raw), BLOCK):
        if raw[at + 257 : at + 262] == b"ustar":
            block = out[at : at + 148] + b" " * 8 + out[at + 156 : at + BLOCK]
            out[at + 148 : at + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(out)


def archive(path: Path, *members: tuple[str, bytes | str, bytes], **options: Any) -> None:
    """A tar of (name, data or link, type)."""
    with tarfile.open(path, "w", **options) as made:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(data, str):
                info.linkname = data
                made.addfile(info)
            else:
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))


FILE, LINK, SYMBOLIC = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


def test_hard_links_are_what_they_link_to(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 700)
    os.link(tmp_path / "a", tmp_path / "c")
    os.link(tmp_path / "a", tmp_path / "d")
    for style in ("gnu", "pax", "ustar"):
        gnu_tar(tmp_path, f"--format={style}", members=("a", "b", "c", "d"))
        found, refused, damage = read(tmp_path)
        assert (refused, damage) == ({}, "")
        assert found == {"a": b"a" * 700, "b": b"b" * 700, "c": b"a" * 700, "d": b"a" * 700}
    archive(tmp_path / "x.tar", ("c", "elsewhere", LINK), ("a", b"a", FILE))
    assert read(tmp_path)[1] == {"c": "a hard link to 'elsewhere', which is not before it"}


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_sizes_of_pax_are_honoured(tmp_path: Path, style: int) -> None:
    long = "/".join(["folder" * 15] * 4) + "/0.frames.npy"
    archive(tmp_path / "x.tar", (long, b"1" * 600, FILE), ("b", b"2", FILE), format=style)
    assert read(tmp_path) == ({long: b"1" * 600, "b": b"2"}, {}, "")


def test_a_size_of_pax_replaces_that_of_the_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"size": "700"}
    head = info.tobuf(tarfile.PAX_FORMAT)
    raw = head + b"a" * 700 + bytes(324) + tarfile.TarInfo("b").tobuf() + bytes(2 * BLOCK)
    (tmp_path / "x.tar").write_bytes(raw)
    assert read(tmp_path) == ({"a": b"a" * 700, "b": b""}, {}, "")


@pytest.mark.parametrize("headers", [{"comment": "of git"}, {"mtime": "1"}])
def test_global_headers_that_change_no_bytes_are_passed(tmp_path: Path, headers: dict[str, str]) -> None:
    archive(tmp_path / "x.tar", ("a", b"1", FILE), format=tarfile.PAX_FORMAT, pax_headers=headers)
    assert read(tmp_path) == ({"a": b"1"}, {}, "")


@pytest.mark.parametrize("name", ["size", "path", "linkpath", "GNU.sparse.major", "GNU.volume.filename"])
def test_global_headers_that_are_of_one_file_are_refused(tmp_path: Path, name: str) -> None:
    archive(tmp_path / "x.tar", ("a", b"1", FILE), format=tarfile.PAX_FORMAT, pax_headers={name: "3"})
    found, _, damage = read(tmp_path)
    assert not found
    assert f"a global header gives every file the same {name}" in damage


MEMBERS = {
    "a symbolic link, which is not followed": ("a", "b", SYMBOLIC),
    "a device": ("a", b"", tarfile.CHRTYPE),
    "a pipe": ("a", b"", tarfile.FIFOTYPE),
    "of a type that is not known: b'Q'": ("a", b"1", b"Q"),
    "its name leads out of the archive": ("../a", b"1", FILE),
    "its name is not printable": ("a\x1b[2J", b"1", FILE),
}


@pytest.mark.parametrize("why", MEMBERS)
def test_members_that_are_no_files_are_refused_by_name(tmp_path: Path, why: str) -> None:
    archive(tmp_path / "x.tar", MEMBERS[why], ("b", b"2", FILE))
    found, refused, damage = read(tmp_path)
    assert (found, damage) == ({"b": b"2"}, "")
    assert list(refused) == [ascii(MEMBERS[why][0])[1:-1]]
    assert why in next(iter(refused.values()))


@pytest.mark.parametrize("name", ["/etc/a", "x/../../a", ".."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    archive(tmp_path / "x.tar", (name, b"1", FILE))
    assert list(read(tmp_path)[1]) == [name]


def test_folders_and_labels_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"1")
    gnu_tar(tmp_path, "--format=gnu", "--label=shelf", members=("d",))
    assert read(tmp_path) == ({"d/a": b"1"}, {}, "")


def test_a_name_is_one_however_it_is_written(tmp_path: Path) -> None:
    archive(tmp_path / "x.tar", ("./d/a", b"1", FILE), ("d/./b", b"2", FILE), ("d//c", b"3", FILE))
    assert read(tmp_path) == ({"d/a": b"1", "d/b": b"2", "d/c": b"3"}, {}, "")


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda raw: b"\x28\xb5\x2f\xfd" + raw,
}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_tars_are_told(tmp_path: Path, kind: str) -> None:
    files.tar(tmp_path / "x.tar", {"0": files.webdataset_sample(0)})
    raw = COMPRESSED[kind]((tmp_path / "x.tar").read_bytes())
    (tmp_path / "x.tar").write_bytes(raw)
    assert read(tmp_path) == ({}, {}, f"not a tar but {kind}: unpack it first")
    (tmp_path / "x.tar").rename(tmp_path / "y.tar.gz")
    files.tar(tmp_path / "x.tar", {"0": files.webdataset_sample(0)})
    config = formats()["webdataset"].config(lead="into")
    listing = formats()["webdataset"].listing(config, open_store(tmp_path))
    assert [item.key for item in listing.items] == ["x.tar/0"]
    assert listing.refused == {"y.tar.gz": "compressed: unpack it to a .tar first"}


def test_archives_one_behind_the_other_are_told(tmp_path: Path) -> None:
    archive(tmp_path / "x.tar", ("a", b"1", FILE))
    raw = (tmp_path / "x.tar").read_bytes()
    for apart in (0, 100 * BLOCK, 3 * tars.PIECE):
        (tmp_path / "x.tar").write_bytes(raw + bytes(apart) + raw)
        found, _, damage = read(tmp_path)
        assert found == {"a": b"1"}
        assert "more follows its end" in damage
    (tmp_path / "x.tar").write_bytes(raw + bytes(100 * BLOCK))
    assert read(tmp_path)[2] == ""


def test_volumes_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(30_000))
    (tmp_path / "b").write_bytes(b"b" * 100)
    command = ["tar", "--format=gnu", "-M", "-L", "20", "-cf", "x.tar", "-f", "y.tar", "a", "b"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60, input=b"")
    place = open_store(tmp_path)
    first = tars.contents(place, "x.tar", (tmp_path / "x.tar").stat().st_size)
    assert "not read" in first.damage
    assert first.members == [] and "cut off" in first.refused["a"]
    _, _, damage = read(tmp_path, "y.tar")
    assert "another volume" in damage


def test_a_sample_that_lacks_what_was_refused_is_refused(tmp_path: Path) -> None:
    """Without its json, or with one of two, it would be another episode than was packed."""
    sample = files.webdataset_sample(0)
    packed = [(f"{n}.{name}", data, FILE) for n in range(3) for name, data in sample.items()]
    twice = ("1.json", b'{"task": "other"}', FILE)
    archive(tmp_path / "x.tar", *(one for one in packed if one[0] != "0.json"), ("0.json", "1.json", SYMBOLIC), twice)
    config = formats()["webdataset"].config(lead="into")
    listing = formats()["webdataset"].listing(config, open_store(tmp_path))
    assert [item.key for item in listing.items] == ["x.tar/2"]
    assert "0.json: a symbolic link" in listing.refused["x.tar/0"]
    assert listing.refused["x.tar/1"] == "1.json is in it twice"


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    number = size.to_bytes(12, "big", signed=True) if size < 0 or size >= 8**11 else f"{size:011o}\0".encode()
    raw[124:136] = (bytes([raw[124] | 0x80]) if size >= 8**11 else number[:1]) + number[1:]
    return with_checksums(bytes(raw))


@pytest.mark.parametrize(
    ("kind", "size"), list(itertools.product([FILE, b"L", b"x", b"g", b"S", b"Q"], [-512, -1024, 2**40, 2**62]))
)
def test_sizes_that_cannot_be_end_the_reading(tmp_path: Path, kind: bytes, size: int) -> None:
    """Neither for ever, nor by asking for a gigabyte."""
    raw = tarfile.TarInfo("first").tobuf() + header("a", kind, size) + b"1" * 5 * BLOCK + bytes(2 * BLOCK)
    (tmp_path / "x.tar").write_bytes(raw)
    place = open_store(tmp_path)
    found = tars.contents(place, "x.tar", len(raw))
    assert found.damage
    assert "first" in [one.name for one in found.members]


@pytest.mark.parametrize("told", ["0,10", "0,10,15", "0,10,10,9", "0,10,15,11"])
def test_a_map_accounts_for_every_stored_byte(tmp_path: Path, told: str) -> None:
    """Within the last block too: nothing guards the bytes of a map."""
    sparse = tarfile.TarInfo("a")
    sparse.size, sparse.pax_headers = 20, {"GNU.sparse.map": told, "GNU.sparse.size": "30"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(b"A" * 20))
        link = tarfile.TarInfo("b")
        link.type, link.linkname = tarfile.LNKTYPE, "a"
        tar.addfile(link)
    found, refused, damage = read(tmp_path)
    assert (found, damage) == ({}, "")
    assert refused["a"].endswith("are, and 20 are stored")
    assert refused["b"] == "a hard link to 'a', which is not before it"


@pytest.mark.parametrize("size", [2_000, 2**40, 2**62])
def test_a_file_that_is_longer_than_its_tar_is_not_read(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.tar").write_bytes(header("a", FILE, size) + bytes(700))
    found, refused, damage = read(tmp_path)
    assert found == {} and damage
    assert size > 2_000 or refused == {"a": "the tar is cut off, 700 of 2000 bytes are there"}


def test_headers_of_headers_without_end_are_damage(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tarfile.TarInfo("first").tobuf() + header("a", b"L", 0) * 5_000)
    found, _, damage = read(tmp_path)
    assert list(found) == ["first"]
    assert "recursion" in damage


def test_a_tar_of_nothing_but_trouble_says_what(tmp_path: Path) -> None:
    archive(tmp_path / "x.tar", ("0.frames.npy", "/etc/passwd", SYMBOLIC))
    with pytest.raises(UserError, match=r"0\.frames\.npy: a symbolic link"):
        formats()["webdataset"].listing(formats()["webdataset"].config(lead="into"), open_store(tmp_path))
