"""Compaction: the many parts of a table become one file that is sorted by key and quick to read.

Safe beside writers, readers and other compactions, and when it is killed at any moment: a new file is written under a
name of its own, whole or not at all, and only then the files that went into it are removed, which nobody ever writes
again. Of each key only the newest row is kept. Parts keep their names: a retry replaces its rows in a compacted file
as it replaces a part of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.tables import schema
from longtake.tables import table as tables
from longtake.tables.files import Listing, Piece, common_schema, compacted_file, files, note, remove, write
from longtake.tables.schema import EVENT_TIME

if TYPE_CHECKING:
    import pyarrow as pa

    from longtake.storage.store import Store

GROUP_ROWS = 65_536
"""Rows of a row group: what a reader takes or skips at once."""

HALF_WRITTEN_S = 3600.0
"""What a writer that was killed left half written is removed when it is this old."""


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: files before and after, parts and rows that stand."""

    table: str
    files_before: int
    files: int
    parts: int
    rows: int


def compact(store: Store, table: str) -> Compacted:
    """Bring all parts of a table into one file. A table that is one already, or empty, is left alone."""
    schema.keys(table)
    if halves := store.half_written(f"tables/{table}", HALF_WRITTEN_S):
        store.remove(list(halves))
    listing = files(store, table)
    before = listing.present
    if before and not _is_compacted(listing):
        rows, parts = tables.look(store, table, None, lambda pieces: _merge(table, pieces))
        event = max([tables.now_ns(), *(event + 1 for event in (*parts.values(), *(file.event for file in before)))])
        write(store, *compacted_file(table, event, _described(table, rows, parts), GROUP_ROWS))
        # What was there before the look is in the new file, or older than what is in it.
        remove(store, before, [mark for mark in listing.written if mark.event < event])
    return tables.look(store, table, None, lambda pieces: _state(table, len(before), pieces))


def _is_compacted(listing: Listing) -> bool:
    """One file, which has its mark."""
    return len(listing.present) == 1 and listing.present[0].part is None and listing.present[0] in listing.written


def _state(table: str, before: int, pieces: Sequence[Piece]) -> Compacted:
    rows = sum(int(piece.fragment.metadata.num_rows) for piece in pieces)
    return Compacted(table, before, len(pieces), sum(len(piece.parts) for piece in pieces), rows)


def _merge(table: str, pieces: Sequence[Piece]) -> tuple[pa.Table, dict[str, int]]:
    """The newest row of each key, sorted, and the event of each part."""
    import pyarrow as pa

    filled = [piece for piece in pieces if piece.fragment.metadata.num_rows]
    whole = common_schema(piece.fragment.physical_schema for piece in filled) if filled else schema.empty(table)
    parts: dict[str, int] = {}
    used: set[int] = set()
    loaded = [whole.empty_table()]
    for piece in pieces:
        moved = {}
        for part, event in piece.parts.items():
            # In one file the event tells whose a row is: two writers that tie are told apart by a nanosecond.
            parts[part] = next(free for free in itertools.count(event) if free not in used)
            used.add(parts[part])
            moved[event] = parts[part]
        rows = tables.arrow([piece], whole, whole.names)
        loaded.append(rows if all(old == new for old, new in moved.items()) else _moved(rows, moved))
    return tables.newest(pa.concat_tables(loaded), schema.keys(table)), parts


def _moved(rows: pa.Table, moved: Mapping[int, int]) -> pa.Table:
    """The rows with other events."""
    import pyarrow as pa

    place = rows.column_names.index(EVENT_TIME)
    events = [moved[event] for event in rows.column(place).cast(pa.int64()).to_pylist()]
    return rows.set_column(place, rows.schema.field(place), pa.array(events, pa.int64()).cast(rows.schema.types[place]))


def _described(table: str, rows: pa.Table, parts: Mapping[str, int]) -> pa.Table:
    """The rows with what a reader must know: the parts; and with what pandas wants, to read the types that we read."""
    import pyarrow as pa

    pandas = pa.Schema.from_pandas(tables.to_pandas(rows), preserve_index=False).metadata
    return rows.replace_schema_metadata({**pandas, **note(table, parts=parts)})
