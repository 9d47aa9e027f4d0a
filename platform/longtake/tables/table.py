"""Tables: rows are appended as parts, and read as pandas frames.

A part is there whole or not at all. Its name is a deterministic key, so work that is done twice replaces its own
rows. Of several rows with the same key, the newest event wins. How parts are files: `longtake.tables.files`; what the
columns mean: `longtake.tables.schema`; how many parts become one file: `longtake.tables.compaction`.
"""

from __future__ import annotations

import ast
import enum
import functools
import json
import operator
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from longtake.errors import UserError, unknown
from longtake.storage import clock
from longtake.tables import pushdown, run_notes, schema
from longtake.tables import where as query
from longtake.tables.files import (
    PART,
    Cache,
    File,
    Piece,
    common_schema,
    damage_told,
    files,
    lost,
    named,
    newest_event,
    note,
    part_file,
    parts_in,
    remove,
    standing,
    versions,
    write,
)
from longtake.tables.schema import EVENT_TIME

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from longtake.storage.store import Store

LOST_AFTER_S = 60.0
"""A run that says `running` and has been silent this long has lost its driver."""

MARKED: dict[str, set[str]] = {"runs": {"status", EVENT_TIME}, "trials": {"sweep", "state"}}
"""The tables whose rows say what their writer, who is gone, could not, and the columns that it takes to know."""

LOOKS = 50
"""How often a reader looks again when files vanish under it; each look keeps what the ones before have read."""

LOOKS_FOR_LOST = 3
"""So many looks in a row must miss the same files, until these are lost."""

Found = TypeVar("Found")


def later_than(store: Store, table: str, start: str) -> None:
    """Let what this process appends from now on be newer than all that parts of names beginning so hold.

    Who redoes work under other parts' names asks for it first: whose clock is behind would lose to what it replaces.
    """
    global _last_ns
    newest = newest_event(store, table, start)
    with _clock:
        _last_ns = max(_last_ns, newest)


def append(store: Store, table: str, rows: Iterable[Mapping[str, Any]] | pd.DataFrame, part: str) -> None:
    """Write rows as one part; a part of that name is replaced. No rows make an empty part: the work is done.

    Dicts and lists become JSON text. Raises UserError for an unknown table, ValueError for a row that lacks a
    column of its key, TypeError for a column of mixed types or of another type than the table's.
    """
    import pandas as pd

    schema.keys(table)
    if not PART.fullmatch(part):
        raise ValueError(f"part {part!r}: expected letters, digits and . _ = + - (and / between them)")
    older = versions(store, table, part)
    # A clock that is behind must not make the new version the older one.
    event = max([now_ns(), *(file.event + 1 for file in older)])
    values = _of_frame(rows) if isinstance(rows, pd.DataFrame) else _of_rows(table, [dict(row) for row in rows])
    write(store, *part_file(table, part, event, _to_arrow(table, values, event)))
    remove(store, older)


def read(
    store: Store,
    table: str,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    part: str | None = None,
    join_runs: bool = False,
) -> pd.DataFrame:
    """The table's rows, one per key (the newest), sorted by key, with the union of all parts' columns.

    Args:
        where: a query, such as `metric == 'psnr' and distance > 6`; what it may hold: `longtake.tables.where`.
        columns: which ones, in this order; all if None.
        part: only the rows of this part.
        join_runs: add what `runs` knows about each row's run, as columns run_NAME.

    Only the columns that are needed are read, and only the stretches that can hold rows of the answer. Whole
    numbers stay whole where some rows lack them (Int64). An empty table has its key columns.
    Raises UserError for an unknown table or column, a query that is not allowed, a damaged or lost part.
    """
    schema.keys(table)
    parsed = query.parse(where) if where else None
    wanted = None if join_runs else columns
    frame, every = look(store, table, part, lambda pieces: _scan(table, pieces, parsed, wanted))
    if table == "runs":
        frame = _mark_lost(store, frame)
        if part is None:  # who rewrites a run's part wants what was written
            frame = run_notes.laid_over(frame, read(store, "notes"))
    if table == "trials":
        frame = _mark_preempted(store, frame)
    if join_runs and table != "runs":
        runs = read(store, "runs").rename(columns=lambda name: name if name == "run" else f"run_{name}")
        frame = frame.merge(runs, on="run", how="left")
        every = [str(name) for name in frame.columns]
    every = [*every, *(name for name in schema.COLUMNS[table] if every and name not in every)]
    frame = schema.with_columns(table, frame, [*(columns or ()), *(query.names(parsed) if parsed else ())])
    if where and parsed and every:
        frame = query.select(frame, where, parsed, every)
    if columns is not None:
        frame = _select(frame, columns, every)
    return frame.reset_index(drop=True)


def parts(store: Store, table: str) -> list[str]:
    """Names of the parts that are there, sorted; one whose file was lost is not, and may be written again."""
    schema.keys(table)
    return look(
        store, table, None, lambda pieces: sorted(part for piece in pieces for part in piece.parts), whole=False
    )


def look(
    store: Store, table: str, part: str | None, use: Callable[[list[Piece]], Found], *, whole: bool = True
) -> Found:
    """Call with the pieces that stand (of one part, if named); again if a file vanishes meanwhile.

    Raises UserError, a line per file, if `whole` and a file is gone that was written and not replaced.
    """
    cache = Cache()
    missed: list[list[File]] = []
    for _ in range(LOOKS):
        try:
            listing = files(store, table, part)
            pieces = standing(store, listing.present, cache)
            missed.append(lost(listing, pieces) if whole else [])
            if not missed[-1]:
                return use(pieces if part is None else [one.narrowed(part) for one in pieces if part in one.parts])
            # A listing is no snapshot: what another writer replaced meanwhile stands at the next look.
            if len(missed) >= LOOKS_FOR_LOST and all(again == missed[-1] for again in missed[-LOOKS_FOR_LOST:]):
                raise UserError(*(_gone(store, file) for file in missed[-1]))
        except FileNotFoundError:
            continue
    raise UserError(f"table {table} in store {store.uri} changes faster than it can be read; try again")


def _gone(store: Store, file: File) -> str:
    return (
        f"{store.uri}/{file.name} is gone, and its rows with it: bring it back from a copy, or do the work that wrote "
        f"it again; to go on without these rows remove {store.uri}/{file.mark}"
    )


# --- writing ----------------------------------------------------------------------------------------------

_clock = threading.Lock()
_last_ns = 0


def now_ns() -> int:
    """The time, later than at every earlier call of this process: two events of one process never tie."""
    global _last_ns
    with _clock:
        _last_ns = max(time.time_ns(), _last_ns + 1)
        return _last_ns


def _of_rows(table: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns are the union over the records, in order of appearance; a value that a record lacks is None."""
    for record in records:
        missing = [key for key in schema.keys(table) if key not in record]
        if missing:
            raise ValueError(f"table {table}: a row lacks {', '.join(missing)} of its key")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [_plain(record.get(name)) for record in records] for name in names}


def _of_frame(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        str(name): [_plain(value) for value in column] if column.dtype == object else column
        for name, column in frame.items()
    }


def _to_arrow(table: str, values: Mapping[str, Any], event_ns: int) -> pa.Table:
    import pyarrow as pa

    missing = [key for key in schema.keys(table) if key not in values]
    if missing and values:
        raise ValueError(f"table {table}: a row lacks {', '.join(missing)} of its key")
    columns: dict[str, Any] = {}
    for name, column in values.items():
        if name == EVENT_TIME:
            continue
        try:
            array = pa.array(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise TypeError(f"column {name!r} holds values of different types: {error}") from error
        columns[name] = schema.cast(table, name, array)
    if not columns:
        return schema.empty(table).with_metadata(note(table)).empty_table()
    rows = len(next(iter(columns.values())))
    columns[EVENT_TIME] = times([event_ns] * rows)
    return pa.table(columns).replace_schema_metadata(note(table))


def _plain(value: Any) -> Any:
    """A value as a column can hold it: structured ones as JSON, paths and enums as text."""
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str)
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, enum.Enum) else value


# --- reading ----------------------------------------------------------------------------------------------


def _scan(
    table: str, pieces: Sequence[Piece], where: ast.expr | None, columns: Sequence[str] | None
) -> tuple[pd.DataFrame, list[str]]:
    """The rows that `where` can select, with the columns that are needed; and the names of all columns."""
    pieces = [piece for piece in pieces if piece.fragment.metadata.num_rows]
    if not pieces:
        return to_pandas(schema.empty(table).empty_table()), []
    whole = common_schema(piece.fragment.physical_schema for piece in pieces)
    keys = schema.keys(table)
    unique = len(pieces) == 1 and pieces[0].file.part is None  # a compaction has left one row per key, sorted
    # Which row of a key is the newest is known of all its rows only; all of them agree in the key's columns.
    required = set(whole.names) if unique and table not in MARKED else set(keys)
    condition = pushdown.condition(where, whole, required) if where else None
    needed = _needed(table, whole, where, columns, unique)
    rows = arrow(pieces, whole, needed, condition)
    return to_pandas(rows if unique else newest(rows, keys)), list(whole.names)


def _needed(
    table: str, whole: pa.Schema, where: ast.expr | None, columns: Sequence[str] | None, unique: bool
) -> list[str]:
    if columns is None:
        return list(whole.names)
    needed = {*columns, *(query.names(where) if where else ())}
    if not unique:
        needed |= {*schema.keys(table), EVENT_TIME}
    needed |= MARKED.get(table, set())
    return [name for name in whole.names if name in needed]


def arrow(pieces: Sequence[Piece], whole: pa.Schema, columns: Sequence[str], condition: Any = None) -> pa.Table:
    """The rows that stand and fulfil a condition, piece by piece."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    def load(piece: Piece) -> pa.Table:
        filters = [] if condition is None else [condition]
        if piece.stale:
            filters.append(~ds.field(EVENT_TIME).isin(times(piece.stale)))
        if piece.only is not None:
            filters.append(ds.field(EVENT_TIME).isin(times([piece.only])))
        both = functools.reduce(operator.and_, filters) if filters else None
        fragment = piece.checked({*columns, EVENT_TIME}, both, whole)
        with damage_told(piece.place):
            return fragment.to_table(schema=whole, columns=list(columns), filter=both, use_threads=alone)

    alone = len(pieces) == 1
    if alone:
        return load(pieces[0])
    with ThreadPoolExecutor(4) as pool:
        return pa.concat_tables(pool.map(load, pieces))


def times(events: Iterable[int]) -> pa.Array:
    """Events as values of the column event_time."""
    import pyarrow as pa

    return pa.array(sorted(events), pa.timestamp("ns", tz="UTC"))


def newest(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """One row per key: the latest event, and of one event the last row; sorted by key, what is missing last."""
    import numpy as np

    if not rows.num_rows:
        return rows
    code, size = np.zeros(rows.num_rows, dtype=np.int64), 1
    for key in keys:
        ranks, count = _ranks(rows.column(key))
        if size * count >= 2**62:
            distinct, code = np.unique(code, return_inverse=True)
            size = len(distinct)
        code, size = code * count + ranks, size * count
    event = rows.column(EVENT_TIME).to_numpy()
    in_order = bool((event[1:] >= event[:-1]).all())
    order = np.argsort(code, kind="stable") if in_order else np.lexsort((event, code))
    sorted_code = code[order]
    last = np.append(sorted_code[1:] != sorted_code[:-1], True)
    return rows.take(order[last])


def _ranks(column: pa.ChunkedArray) -> tuple[Any, int]:
    """Of each value its place among the distinct ones, nulls behind all; and how many there are."""
    import numpy as np
    import pyarrow.compute as pc

    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    rank[-1] = len(order)
    return rank[encoded.indices.fill_null(len(order)).to_numpy()], len(order) + 1


def to_pandas(rows: pa.Table) -> pd.DataFrame:
    """As pandas, with whole numbers and truth values that stay such where some are missing."""
    import pandas as pd
    import pyarrow as pa

    frame: pd.DataFrame = rows.replace_schema_metadata(None).to_pandas()
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        if column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            kind: Any = pd.BooleanDtype() if pa.types.is_boolean(column.type) else pd.Int64Dtype()
            frame[name] = kind.__from_arrow__(column)
    return frame


def _mark_lost(store: Store, runs: pd.DataFrame) -> pd.DataFrame:
    """A run that says that it is running, and says nothing more, has lost its driver."""
    if "status" not in runs or not len(runs):
        return runs
    import pandas as pd

    silent = pd.Timestamp.now(tz="UTC") - runs[EVENT_TIME] > pd.Timedelta(seconds=LOST_AFTER_S)
    silent &= runs["status"] == "running"
    if silent.any():  # by their drivers' clocks, which may be behind ours
        silent &= ~runs["run"].isin(_heard_of(store))
    runs.loc[silent, "status"] = "lost"
    return runs


def _heard_of(store: Store) -> set[str]:
    """Runs that have said something within LOST_AFTER_S, by the clock of the storage; what was merged since is heard of
    as well."""
    runs: set[str] = set()
    for name, age in clock.ages(store, "tables/runs").items():
        if age < LOST_AFTER_S and (file := named(name)):
            runs.update([file.part] if file.part is not None else parts_in(store, file))
    return runs


def _mark_preempted(store: Store, trials: pd.DataFrame) -> pd.DataFrame:
    """A trial that runs in a sweep which does not is to be gone on with."""
    if "state" not in trials or not (trials["state"] == "running").any():
        return trials
    runs = read(store, "runs")
    if "status" in runs:
        over = runs.loc[runs["status"] != "running", "run"]
        trials.loc[(trials["state"] == "running") & trials["sweep"].isin(over), "state"] = "preempted"
    return trials


def _select(frame: pd.DataFrame, columns: Sequence[str], every: Sequence[str]) -> pd.DataFrame:
    """The named columns. Of an empty table any name is right: nobody knows better yet."""
    if every and (missing := [name for name in columns if name not in every]):
        raise UserError(*(unknown("column", name, every) for name in missing))
    return frame[list(columns)] if every else frame.reindex(columns=list(columns))
