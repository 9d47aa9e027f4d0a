"""The index of a dataset in memory: small enough for a million long episodes, and read as far as it is asked for."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtake.errors import Damaged
from longtake.shards import Chunk

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from longtake.store import Store

ROWS = 16_384  # of the file that are unpacked at a time


class _Places(NamedTuple):
    """Where one array of every episode lies: its first byte, and of its chunks, which follow each other, the rest.

    ends (N,): chunks up to and with this episode; sizes, crcs uint32, of all chunks of all episodes.
    """

    first: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    crcs: NDArray[np.uint32]


class Index:
    """The rows of an `index.parquet` whose CRC-32 is known. Raises Damaged for a file that is gone or another."""

    def __init__(self, store: Store, path: str, crc: int) -> None:
        self._store, self._path, self._crc = store, path, crc
        self._places: dict[str, _Places] = {}
        table = self._file().read(columns=["episode", "length", "shard", "split"])
        self.numbers = table["episode"].to_numpy().astype(np.int64)
        self.lengths = table["length"].to_numpy().astype(np.int64)
        self.shards = table["shard"].to_numpy().astype(np.int32)
        self.splits = np.asarray(table["split"].combine_chunks().dictionary_encode().indices, np.int8)
        self.split_names = table["split"].combine_chunks().dictionary_encode().dictionary.to_pylist()

    def frame(self) -> pd.DataFrame:
        """Everything, as a table: for what goes through all episodes once."""
        found: pd.DataFrame = self._file().read().to_pandas()
        return found

    def of_split(self, split: str | None) -> NDArray[np.bool_]:
        """Which rows are of a split; all if none is named."""
        if split is None:
            return np.ones(len(self.numbers), bool)
        return np.asarray(self.splits == self.split_names.index(split)) if split in self.split_names else self._none()

    def _none(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.numbers), bool)

    def meta(self, episode: int) -> str:
        """What is known of an episode, as JSON."""
        return str(self._meta[episode].as_py())

    def chunks(self, episode: int, name: str) -> list[Chunk]:
        """Where the chunks of an array of an episode lie."""
        if name not in self._places:
            self._places[name] = self._read_places(name)
        places = self._places[name]
        some = slice(int(places.ends[episode - 1]) if episode else 0, int(places.ends[episode]))
        sizes = places.sizes[some].astype(np.int64)
        offsets = int(places.first[episode]) + np.cumsum(sizes) - sizes
        return [Chunk(*row) for row in zip(offsets.tolist(), sizes.tolist(), places.crcs[some].tolist(), strict=True)]

    @cached_property
    def _meta(self) -> pa.ChunkedArray:
        return self._file().read(columns=["meta"])["meta"]

    def _read_places(self, name: str) -> _Places:
        import pyarrow.compute as compute

        columns = [f"{name}_{part}" for part in Chunk._fields]
        first, counts, sizes, crcs = [], [], [], []
        for batch in self._file().iter_batches(ROWS, columns=columns):
            offsets, size, crc = (batch.column(column) for column in columns)
            count = compute.list_value_length(offsets).to_numpy(zero_copy_only=False).astype(np.int64)
            first.append(offsets.flatten().to_numpy()[np.cumsum(count) - count])
            counts.append(count)
            sizes.append(size.flatten().cast("uint32").to_numpy())
            crcs.append(crc.flatten().cast("uint32").to_numpy())
        joined = [np.concatenate(parts) for parts in (first, counts, sizes, crcs)]
        return _Places(joined[0], np.cumsum(joined[1]), joined[2], joined[3])

    def _file(self) -> Any:
        """The file, its bytes checked; of a folder it is mapped, not copied."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            with self._store.open(self._path) as file:
                data = file.read_buffer()
        except FileNotFoundError:
            raise Damaged(f"{self._path}: the file is gone; make the dataset again") from None
        if zlib.crc32(data) != self._crc:
            raise Damaged(f"{self._path}: damaged, its checksum does not match; make the dataset again")
        return parquet.ParquetFile(pa.BufferReader(data))
