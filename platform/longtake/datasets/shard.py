"""The byte format of a shard: compressed chunks of arrays behind one another, each with its CRC-32.

A shard is a magic word followed by chunks; where each lies is told by the index of the dataset, so that a
clip is one ranged read. An array is cut into chunks of `chunk` frames, or stored as one chunk per episode
(`chunk` 0). Every chunk is compressed by itself: those of a video are streams that begin with a keyframe.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from longtake.datasets import video

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"LTSHARD1"
ZLIB_LEVEL = 6
ZSTD_LEVEL = 3  # measured on mazes: higher levels and differences between frames cost more than they save
Array = NDArray[Any]
Codec = Literal["zstd", "zlib", "video"]
"""zstd and zlib give the same bytes back; video (H.264) is for large frames, and lossy."""


class CorruptData(Exception):
    """Bytes in a shard are not what was written; the message names shard, episode, array and chunk."""


class Chunk(NamedTuple):
    """Where compressed bytes lie in a shard, and their CRC-32."""

    offset: int
    size: int
    crc: int

    def of(self, data: bytes, base: int) -> bytes:
        """Its bytes in those of a shard from `base` on."""
        return data[self.offset - base : self.offset - base + self.size]

    def is_in(self, data: bytes, base: int) -> bool:
        """Whether they are there, as they were written."""
        return zlib.crc32(self.of(data, base)) == self.crc

    def require(self, data: bytes, base: int, where: str) -> bytes:
        """Its bytes. Raises CorruptData that names `where` if they are not what was written."""
        if not self.is_in(data, base):
            raise CorruptData(f"{where}: the checksum of {len(self.of(data, base))} bytes does not match")
        return self.of(data, base)


class ArraySpec(BaseModel):
    """One array of every episode: `shape` per frame, `chunk` the frames per chunk (0: whole episodes).

    crf: quality of a video, see `longtake.datasets.video`; None for the lossless codecs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk: int
    codec: Codec = "zstd"
    crf: int | None = None

    def spans(self, length: int) -> list[tuple[int, int]]:
        """First and end frame of each chunk of an episode of `length` frames."""
        step = self.chunk or length
        return [(start, min(start + step, length)) for start in range(0, length, step)]

    def nbytes(self, frames: int) -> int:
        """Size of that many frames before compression."""
        return frames * int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class ShardBuffer:
    """A shard in the making."""

    def __init__(self) -> None:
        self._data = bytearray(MAGIC)

    def add(self, spec: ArraySpec, array: Array) -> list[Chunk]:
        """Append the chunks of one array (T, *shape); returns where they lie."""
        return [self._append(_CODECS[spec.codec][0](spec, array[a:b])) for a, b in spec.spans(len(array))]

    def _append(self, data: bytes) -> Chunk:
        chunk = Chunk(len(self._data), len(data), zlib.crc32(data))
        self._data += data
        return chunk

    def data(self, chunk: Chunk) -> bytes:
        """The compressed bytes of one chunk."""
        return bytes(self._data[chunk.offset : chunk.offset + chunk.size])

    def bytes(self) -> bytes:
        """The whole shard."""
        return bytes(self._data)


def decode(
    spec: ArraySpec, data: bytes, frames: int, where: str, *, first: int = 0, into: Array | None = None
) -> Array:
    """One chunk's bytes as an array (frames, *shape), or written `into` one: as many frames, from `first` on.

    Raises CorruptData that names `where` for bytes of another array.
    """
    array = np.empty((frames, *spec.shape), spec.dtype) if into is None else into
    try:
        _CODECS[spec.codec][1](spec, data, frames, first, array)
    except (ValueError, OSError, zlib.error) as error:  # an index that belongs to other bytes
        raise CorruptData(f"{where}: {error}") from error
    return array


def _zstd_out(spec: ArraySpec, data: bytes, frames: int, first: int, into: Array) -> None:
    _copy(spec, _zstd().decompress(data, decompressed_size=spec.nbytes(frames)), frames, first, into)


def _zlib_out(spec: ArraySpec, data: bytes, frames: int, first: int, into: Array) -> None:
    # A byte more than there should be: what is packed may claim any size.
    _copy(spec, zlib.decompressobj().decompress(data, spec.nbytes(frames) + 1), frames, first, into)


def _copy(spec: ArraySpec, raw: pyarrow.Buffer | bytes, frames: int, first: int, into: Array) -> None:
    if len(raw) != spec.nbytes(frames):
        raise ValueError(f"{len(raw)} bytes instead of {spec.nbytes(frames)}")
    into[...] = np.frombuffer(raw, spec.dtype).reshape(frames, *spec.shape)[first : first + len(into)]


_In = Callable[[ArraySpec, Array], bytes]
_Out = Callable[[ArraySpec, bytes, int, int, Array], None]
_CODECS: dict[Codec, tuple[_In, _Out]] = {
    "zstd": (lambda spec, array: _zstd().compress(_raw(array), asbytes=True), _zstd_out),
    "zlib": (lambda spec, array: zlib.compress(_raw(array), ZLIB_LEVEL), _zlib_out),
    "video": (
        lambda spec, array: video.encode(array, spec.crf if spec.crf is not None else video.CRF),
        lambda spec, data, frames, first, into: video.decode(data, frames, first, into),
    ),
}


def _raw(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _zstd() -> pyarrow.Codec:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
