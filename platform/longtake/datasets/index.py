"""The index of a dataset in memory: small enough for a million long episodes, and read as far as it is asked for."""

from __future__ import annotations

import io
import tempfile
import threading
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.shard import Chunk
from longtake.errors import Damaged

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from longtake.storage.store import Store

ROWS = 16_384  # of the file that are unpacked at a time: the first clip of a million episodes waits for no more
PIECE = 16 * 2**20  # bytes of the file that are checked at a time


class _Places(NamedTuple):
    """Where one array of some episodes in a row lies: its first byte, and of its chunks, one after the other, the rest.

    ends (N,): chunks up to and with this episode; sizes, crcs uint32, of all chunks of all episodes.
    """

    first: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    crcs: NDArray[np.uint32]


class Index:
    """The rows of an `index.parquet` whose CRC-32 is known. Raises Damaged for a file that is gone or another."""

    def __init__(self, store: Store, path: str, crc: int) -> None:
        self._file = _checked(store, path, crc)
        self._reading = threading.Lock()
        rows = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._ends = np.cumsum(rows)
        self._places: dict[tuple[str, int], _Places] = {}
        self._metas: dict[int, pa.ChunkedArray] = {}
        table = self._file.read(columns=["episode", "length", "shard", "split"])
        self.numbers = table["episode"].to_numpy().astype(np.int64)
        self.lengths = table["length"].to_numpy().astype(np.int64)
        self.shards = table["shard"].to_numpy().astype(np.int32)
        self.splits = np.asarray(table["split"].combine_chunks().dictionary_encode().indices, np.int8)
        self.split_names = table["split"].combine_chunks().dictionary_encode().dictionary.to_pylist()

    def frame(self) -> pd.DataFrame:
        """Everything, as a table: for what goes through all episodes once."""
        with self._reading:
            rows: pd.DataFrame = self._file.read().to_pandas()
        return rows

    def of_split(self, split: str | None) -> NDArray[np.bool_]:
        """Which rows are of a split; all if none is named."""
        if split is None:
            return np.ones(len(self.numbers), bool)
        return np.asarray(self.splits == self.split_names.index(split)) if split in self.split_names else self._none()

    def _none(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.numbers), bool)

    def meta(self, episode: int) -> str:
        """What is known of an episode, as JSON."""
        group, row = self._group(episode)
        with self._reading:
            if group not in self._metas:
                self._metas[group] = self._file.read_row_group(group, columns=["meta"])["meta"]
        return str(self._metas[group][row].as_py())

    def chunks(self, episode: int, name: str) -> list[Chunk]:
        """Where the chunks of an array of an episode lie."""
        group, row = self._group(episode)
        with self._reading:  # what two threads want is read once
            if (name, group) not in self._places:
                self._places[name, group] = self._read_places(name, group)
        places = self._places[name, group]
        some = slice(int(places.ends[row - 1]) if row else 0, int(places.ends[row]))
        sizes = places.sizes[some].astype(np.int64)
        offsets = int(places.first[row]) + np.cumsum(sizes) - sizes
        return [
            Chunk(*chunk) for chunk in zip(offsets.tolist(), sizes.tolist(), places.crcs[some].tolist(), strict=True)
        ]

    def _group(self, episode: int) -> tuple[int, int]:
        """The part of the file that an episode is in, and its row there."""
        group = int(np.searchsorted(self._ends, episode, side="right"))
        return group, episode - (int(self._ends[group - 1]) if group else 0)

    def _read_places(self, name: str, group: int) -> _Places:
        import pyarrow.compute as compute

        columns = [f"{name}_{part}" for part in Chunk._fields]
        first, counts, sizes, crcs = [], [], [], []
        for batch in self._file.iter_batches(ROWS, row_groups=[group], columns=columns):
            offsets, size, crc = (batch.column(column) for column in columns)
            count = compute.list_value_length(offsets).to_numpy(zero_copy_only=False).astype(np.int64)
            first.append(offsets.flatten().to_numpy()[np.cumsum(count) - count])
            counts.append(count)
            sizes.append(size.flatten().cast("uint32").to_numpy())
            crcs.append(crc.flatten().cast("uint32").to_numpy())
        joined = [np.concatenate(parts) for parts in (first, counts, sizes, crcs)]
        return _Places(joined[0], np.cumsum(joined[1]), joined[2], joined[3])


def _checked(store: Store, path: str, crc: int) -> Any:
    """The file, its bytes checked, read from as far as it is asked for; of an object storage a copy on disk."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        file = pa.OSFile(store.path(path)) if store.is_folder else _copied(store, path)
    except FileNotFoundError:
        raise Damaged(f"{path}: the file is gone; make the dataset again") from None
    total = 0
    while piece := file.read(PIECE):
        total = zlib.crc32(piece, total)
    if total != crc:
        raise Damaged(f"{path}: damaged, its checksum does not match; make the dataset again")
    file.seek(0)
    return parquet.ParquetFile(file)


def _copied(store: Store, path: str) -> Any:
    """A file of this machine that is gone when it is closed."""
    import pyarrow as pa

    with tempfile.NamedTemporaryFile() as copy, store.open(path) as source:
        while piece := source.read(PIECE):
            copy.write(piece)
        copy.flush()
        return pa.OSFile(copy.name)


def to_parquet(frame: pd.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, row_group_size=ROWS)
    return buffer.getvalue()


def from_parquet(data: bytes) -> pd.DataFrame:
    """The table that `to_parquet` made bytes of."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(data))
