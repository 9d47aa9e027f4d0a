"""The byte format of a shard: compressed chunks of arrays behind one another, each with its CRC-32.

A shard is a magic word followed by chunks; where each lies is told by the index of the dataset, so that a
clip is one ranged read. An array is cut into chunks of `chunk` frames, or stored as one chunk per episode
(`chunk` 0).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"LTSHARD1"
ZSTD_LEVEL = 3  # measured on mazes: higher levels and differences between frames cost more than they save
Array = NDArray[Any]


class CorruptData(Exception):
    """Bytes in a shard are not what was written; the message names shard, episode, array and chunk."""


class Chunk(NamedTuple):
    """Where compressed bytes lie in a shard, and their CRC-32."""

    offset: int
    size: int
    crc: int


class ArraySpec(BaseModel):
    """One array of every episode: `shape` per frame, `chunk` the frames per chunk (0: whole episodes)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk: int
    codec: Literal["zstd"] = "zstd"

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
        self._parts = [MAGIC]
        self._size = len(MAGIC)

    def add(self, spec: ArraySpec, array: Array) -> list[Chunk]:
        """Append the chunks of one array (T, *shape); returns where they lie."""
        return [self._append(_codec().compress(_raw(array[a:b]), asbytes=True)) for a, b in spec.spans(len(array))]

    def _append(self, data: bytes) -> Chunk:
        chunk = Chunk(self._size, len(data), zlib.crc32(data))
        self._parts.append(data)
        self._size += len(data)
        return chunk

    def bytes(self) -> bytes:
        """The whole shard."""
        return b"".join(self._parts)


def decode(spec: ArraySpec, data: bytes, crc: int, frames: int, where: str) -> Array:
    """One chunk's bytes as an array (frames, *shape); raises CorruptData that names `where`."""
    if zlib.crc32(data) != crc:
        raise CorruptData(f"{where}: the checksum of {len(data)} bytes does not match")
    size = spec.nbytes(frames)
    raw = _codec().decompress(data, decompressed_size=size, asbytes=True)
    if len(raw) != size:
        raise CorruptData(f"{where}: {len(raw)} bytes instead of {size}")
    return np.frombuffer(raw, spec.dtype).reshape(frames, *spec.shape)


def _raw(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _codec() -> pyarrow.Codec:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
