"""Parquet files of which every byte that is read is checked against a SHA-256, and that other readers read as well.

Parquet's own page checksums leave out the headers of the pages and the footer. So a sealed file carries, where readers
of Parquet pass over them, digests of its column chunks, and its name the digest of its tail:

    PAR1  column chunks  digests of 16 bytes  their number, u32  footer  its size, u32  PAR1
                         |----------------------- the tail -------------------------------|

Who reads two columns of a large file in an object storage fetches its tail and these columns, and both are checked.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.storage.local_files import errors_told

if TYPE_CHECKING:
    import pyarrow as pa

    from longtake.storage.store import Store

DIGEST_BYTES = 16
TAIL_BYTES = 65_536
"""Fetched at first: what the tail of a table of a million rows has."""

FETCH_BYTES = 8_000_000
"""Of one request: several at the same time are quicker than a large one."""

_COUNT = struct.Struct("<I")
_END = struct.Struct("<I4s")
_MAGIC = b"PAR1"

Span = tuple[int, int]
"""First byte and the byte after the last."""


@dataclass(frozen=True)
class Chunk:
    """One column of one row group, and where its bytes are."""

    group: int
    column: str
    start: int
    end: int


def digest(data: Any) -> bytes:
    """The first 16 bytes of the SHA-256 of some bytes."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def seal(file: bytes) -> tuple[bytes, str]:
    """A Parquet file with digests before its footer, and the digest of its tail, in hexadecimal."""
    import pyarrow.parquet as pq

    whole = memoryview(file)
    footer = _footer(file)
    digests = [digest(whole[chunk.start : chunk.end]) for chunk in _chunks(pq.read_metadata(io.BytesIO(file)))]
    tail = b"".join(digests) + _COUNT.pack(len(digests)) + bytes(whole[footer:])
    return bytes(whole[:footer]) + tail, digest(tail).hex()


def stamped(file: bytes) -> bytes:
    """A small Parquet file with the SHA-256 of all its other bytes before the footer, where readers pass over it."""
    footer = _footer(file)
    return file[:footer] + hashlib.sha256(file).digest() + file[footer:]


def is_stamped(data: bytes) -> bool:
    """Whether every byte is as `stamped` has put it."""
    stamp = _footer(data) - hashlib.sha256().digest_size
    footer = stamp + hashlib.sha256().digest_size
    return stamp > 0 and hashlib.sha256(data[:stamp] + data[footer:]).digest() == data[stamp:footer]


def _footer(data: bytes) -> int:
    """Where the footer begins; no place that can be where nothing says so."""
    return len(data) - _END.size - _END.unpack(data[-_END.size :])[0] if len(data) >= _END.size else -1


def _chunks(metadata: Any) -> list[Chunk]:
    """The column chunks of a file, in the order of their digests."""
    chunks = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            chunks.append(Chunk(group, chunk.path_in_schema, start, start + chunk.total_compressed_size))
    return chunks


def damaged(place: str) -> UserError:
    """What is said of a file whose bytes are not those that were written."""
    return UserError(
        f"{place} is damaged (it does not have the bytes that were written): bring it back from a copy, or remove it "
        "and do the work that wrote it again"
    )


class SealedFile:
    """A sealed file of a store, checked stretch by stretch as it is asked for.

    In a folder the file is mapped. Of an object storage there is an image in memory, as large as the file, that holds
    the stretches which were fetched; the rest of it takes no memory.
    """

    def __init__(self, store: Store, name: str, seal: str) -> None:
        """Raises FileNotFoundError, and UserError for a tail that is not the one that the seal is of."""
        self._store, self._path = store, store.path(name)
        self.place = f"{store.uri}/{name}"
        self._checked: set[int] = set()
        with errors_told(self.place):
            self._bytes = _map(self._path) if store.is_folder else self._image()
        tail = self._tail()
        if digest(tail).hex() != seal:
            raise damaged(self.place)
        self._digests = tail

    def source(self) -> pa.BufferReader:
        """The file as Arrow reads it: nothing but the footer, before `require`."""
        import pyarrow as pa

        return pa.BufferReader(pa.py_buffer(self._bytes))

    def require(self, metadata: Any, groups: Collection[int], columns: Collection[str]) -> None:
        """Fetch and check the chunks of some columns in some row groups. Raises UserError for damage."""
        wanted = {
            number: chunk
            for number, chunk in enumerate(_chunks(metadata))
            if chunk.group in groups and _is_of(chunk.column, columns) and number not in self._checked
        }
        self._fetch([(chunk.start, chunk.end) for chunk in wanted.values()])
        for number, chunk in wanted.items():
            at = DIGEST_BYTES * number
            if digest(self._bytes[chunk.start : chunk.end]) != self._digests[at : at + DIGEST_BYTES]:
                raise damaged(self.place)
        self._checked.update(wanted)

    def _image(self) -> memoryview:
        """Room for the file, with its end in it."""
        size = int(self._store.fs.info(self._path)["size"])
        image = memoryview(mmap.mmap(-1, size)) if size else memoryview(b"")
        self._fill(image, [(max(size - TAIL_BYTES, 0), size)])
        return image

    def _tail(self) -> memoryview:
        """The tail as far as its own counts tell; what is damaged in them does not match the seal."""
        size = len(self._bytes)
        if size < _END.size:
            raise damaged(self.place)
        footer, magic = _END.unpack(self._bytes[-_END.size :])
        count_at = size - _END.size - footer - _COUNT.size
        if magic != _MAGIC or count_at < 0:
            raise damaged(self.place)
        self._need(count_at)
        start = count_at - DIGEST_BYTES * _COUNT.unpack(self._bytes[count_at : count_at + _COUNT.size])[0]
        if start < 0:
            raise damaged(self.place)
        self._need(start)
        return self._bytes[start:]

    def _need(self, start: int) -> None:
        """Fetch what the tail has before its first stretch."""
        if start < len(self._bytes) - TAIL_BYTES:
            self._fetch([(start, len(self._bytes) - TAIL_BYTES)])

    def _fetch(self, spans: Sequence[Span]) -> None:
        if not self._store.is_folder:
            with errors_told(self.place):
                self._fill(self._bytes, spans)

    def _fill(self, image: memoryview, spans: Sequence[Span]) -> None:
        ranges = list(_joined(span for span in spans if span[0] < span[1]))
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        pieces = self._store.fs.cat_ranges([self._path] * len(ranges), starts, ends, on_error="raise") if ranges else []
        for (start, end), data in zip(ranges, pieces, strict=True):
            if len(data) != end - start:
                raise damaged(self.place)
            image[start:end] = data


def _is_of(path: str, columns: Collection[str]) -> bool:
    """Whether a chunk belongs to one of the columns; of a nested one the path goes on behind its name."""
    return path in columns or any(path.startswith(f"{name}.") for name in columns)


def _map(path: str) -> memoryview:
    """A file, mapped: it stays readable when it is removed."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Spans that touch as one, as long as a request may be."""
    held: Span | None = None
    for start, end in sorted(spans):
        if held and held[1] == start and end - held[0] <= FETCH_BYTES:
            held = (held[0], end)
            continue
        if held:
            yield held
        held = (start, end)
    if held:
        yield held
