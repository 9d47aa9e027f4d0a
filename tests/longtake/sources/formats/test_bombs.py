"""Small files that claim to be large ones: refused by what they claim, before anything of that is allocated."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.datasets import room, video
from longtake.datasets.episode import Episode
from longtake.datasets.shard import ArraySpec, CorruptData, decode
from longtake.errors import UserError
from longtake.sources.formats import lerobot, tars
from longtake.sources.formats.base import Framing, Npz, Refused, attempt, read_npy
from longtake.sources.formats.rows import require_room
from longtake.storage.store import open_store
from longtake.yaml_text import parse

GB = 10**9
MOST = 50_000_000


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """The header of an npy file of that shape, and some bytes of it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def packed(size: int) -> bytes:
    """An npz with so many zeros in it."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("a.npy", "w") as one,
    ):
        one.write(header((size,))[:-64])
        for _ in range(size // 2**20):
            one.write(bytes(2**20))
    return file.getvalue()


def film(edge: int, frames: int) -> bytes:
    """A plain mp4 of large pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = edge
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame(edge, edge, "yuv420p")
        for plane in picture.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(frames):
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def sparse(folder: Path) -> Callable[[], Any]:
    """A tar of a file of 2 GB of which some bytes are stored."""
    member = tars.Member("0.frames.npy", 2 * GB, 0, 20, ((0, 20),))
    (folder / "x.tar").write_bytes(bytes(512))
    return lambda: tars.read(open_store(folder), "x.tar", member)


def rows(folder: Path) -> Callable[[], Any]:
    """A Parquet file of a hundred million equal rows."""
    table = pa.table({"x": pa.array(np.zeros(10**6, np.int64))})
    with pq.ParquetWriter(folder / "x.parquet", table.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(table)
    return lambda: require_room(pq.read_metadata(folder / "x.parquet"))


BOMBS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "npz": lambda _: partial(Npz, packed(200 * 2**20)),
    "npy header": lambda _: lambda: read_npy(header((2**20, 1024, 1024, 3))),
    "npy header, wrapped": lambda _: lambda: read_npy(header((2**40, 2**30), "<f8")),
    "sparse tar": sparse,
    "mp4 of many large pictures": lambda _: partial(video.read, io.BytesIO(film(2048, 24))),
    "parquet": rows,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(kind: str, tmp_path: Path) -> None:
    read = BOMBS[kind](tmp_path)

    def episode() -> Episode:
        read()
        raise AssertionError("it was read")

    tracemalloc.start()
    with pytest.raises(Refused, match="would take|its header tells of"):
        attempt(episode, Framing(), MOST)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST


def test_pictures_larger_than_any_screen_are_not_decoded() -> None:
    data = film(6144, 1)
    with pytest.raises(video.BadVideo):
        video.read(io.BytesIO(data))


def test_what_fits_is_read_and_counted_together() -> None:
    data = film(64, 4)
    with room.limited(4 * 64 * 64 * 3):
        assert video.read(io.BytesIO(data)).frames.shape == (4, 64, 64, 3)
        with pytest.raises(room.TooLarge, match="max_episode_gb"):
            video.read(io.BytesIO(data))
    assert read_npy(header((64,))[:-64] + bytes(64)).shape == (64,)


def test_a_chunk_of_zlib_is_unpacked_no_further_than_it_may_be_long() -> None:
    spec = ArraySpec(name="frames", dtype="|u1", shape=(8,), chunk=4, codec="zlib")
    bomb = zlib.compress(bytes(100 * 2**20), 9)
    tracemalloc.start()
    with pytest.raises(CorruptData, match="33 bytes instead of 32"):
        decode(spec, bomb, 4, "here")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_zstd_frames_are_unpacked_into_the_room_that_they_have() -> None:
    spec = ArraySpec(name="frames", dtype="|u1", shape=(8,), chunk=4, codec="zstd")
    bomb = bytes(pa.Codec("zstd").compress(bytes(100 * 2**20), asbytes=True))
    with pytest.raises(CorruptData):
        decode(spec, bomb, 4, "here")


@pytest.mark.parametrize(
    "template", ["{chunk_index:>9999999999}", "{chunk_index.__class__}", "{0}", "data/{file_index!r:>99999999}"]
)
def test_templates_of_file_names_are_no_format_strings(template: str) -> None:
    with pytest.raises(ValueError, match="data_path"):
        lerobot.Info(codebase_version="v3.0", fps=10.0, features={}, data_path=template)
    usual = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert lerobot.Info(codebase_version="v3.0", fps=10.0, features={}, data_path=usual).data_path == usual


def laughs() -> str:
    names = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in zip(names, names[1:], strict=False)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (laughs(), "aliases .* make more than 100,000 values"),
        ("a: &a [*a]", "aliases .* make more than"),
        ("a: " + "[" * 20_000, "too deep|not valid YAML"),
        ("a: " + "9" * 10_000, "not valid YAML"),
    ],
    ids=["laughs", "circle", "deep", "digits"],
)
def test_yaml_that_grows_is_one_line(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        parse(text, "x.yaml")
    assert len(caught.value.lines) == 1 and str(caught.value).startswith("x.yaml")


def test_the_header_of_a_cut_npy_is_no_array() -> None:
    with pytest.raises(ValueError, match="header"):
        read_npy(b"\x93NUMPY\x01\x00" + struct.pack("<H", 200) + b"{")
