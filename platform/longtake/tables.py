"""Tables: immutable Parquet parts that are appended, and pandas frames that are read.

A part is a file tables/NAME/PART.parquet that is there whole or not at all. Its name is a deterministic key,
so work that is done twice overwrites its own rows. Of several rows with the same key, the newest event wins.
"""

from __future__ import annotations

import enum
import io
import json
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from longtake.store import Store

KEYS: dict[str, tuple[str, ...]] = {
    "runs": ("run",),
    "steps": ("run", "step"),
    "scores": ("run", "checkpoint", "task", "system", "protocol", "episode", "seed", "frame", "metric"),
    "bench": ("run", "name", "case"),
    "trials": ("sweep", "trial"),
}
"""The tables, and what makes a row of each the same row."""

EVENT_TIME = "event_time"
"""When a row was appended, UTC."""

LOST_AFTER_S = 60.0
"""A run that says `running` and has been silent this long has lost its driver."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*(/[A-Za-z0-9][A-Za-z0-9._=+-]*)*")


def append(store: Store, table: str, rows: Iterable[Mapping[str, Any]] | pd.DataFrame, part: str) -> None:
    """Write rows as one part; a part of that name is replaced. No rows make an empty part: the work is done.

    Dicts and lists become JSON text. Raises UserError for an unknown table, ValueError for a row that lacks a
    column of its key, TypeError for a column of mixed types.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    keys = _keys(table)
    if not _PART.fullmatch(part):
        raise ValueError(f"part {part!r}: expected letters, digits and . _ = + - (and / between them)")
    if isinstance(rows, pd.DataFrame):
        rows = ({str(name): value for name, value in row.items()} for row in rows.to_dict("records"))
    records = [dict(row) for row in rows]
    for record in records:
        missing = [key for key in keys if key not in record]
        if missing:
            raise ValueError(f"table {table}: a row lacks {', '.join(missing)} of its key")
    sink = io.BytesIO()
    pq.write_table(_to_arrow(records, _now_ns()), sink, compression="zstd")
    store.write_bytes(_name(table, part), sink.getvalue())


def read(
    store: Store,
    table: str,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    join_runs: bool = False,
) -> pd.DataFrame:
    """The table's rows, one per key (the newest), as a DataFrame with the union of all parts' columns.

    Args:
        where: a pandas query, such as `metric == 'psnr' and distance > 6`.
        columns: which ones, in this order; all if None.
        join_runs: add what `runs` knows about each row's run, as columns run_NAME.

    Whole numbers stay whole where some rows lack them (Int64). An empty table has its key columns.
    Raises UserError for an unknown table or column, a query that cannot be read, a damaged part.
    """
    frame = _newest(_load(store, table), _keys(table))
    if table == "runs":
        frame = _mark_lost(frame)
    if join_runs and table != "runs":
        runs = read(store, "runs").rename(columns=lambda name: name if name == "run" else f"run_{name}")
        frame = frame.merge(runs, on="run", how="left")
    if where and len(frame):
        frame = _query(frame, where)
    if columns is not None:
        frame = _select(frame, columns)
    return frame.reset_index(drop=True)


def parts(store: Store, table: str) -> list[str]:
    """Names of the parts that are there, sorted."""
    _keys(table)
    prefix, suffix = f"tables/{table}/", ".parquet"
    names = store.find(f"tables/{table}")
    return [name.removeprefix(prefix).removesuffix(suffix) for name in names if name.endswith(suffix)]


def _keys(table: str) -> tuple[str, ...]:
    if table not in KEYS:
        raise UserError(unknown("table", table, KEYS))
    return KEYS[table]


def _name(table: str, part: str) -> str:
    return f"tables/{table}/{part}.parquet"


# --- writing ----------------------------------------------------------------------------------------------

_clock = threading.Lock()
_last_ns = 0


def _now_ns() -> int:
    """The time, later than at every earlier call of this process: two events of one process never tie."""
    global _last_ns
    with _clock:
        _last_ns = max(time.time_ns(), _last_ns + 1)
        return _last_ns


def _to_arrow(records: Sequence[Mapping[str, Any]], event_ns: int) -> pa.Table:
    """Columns are the union over the records, in order of appearance; a value that a record lacks is null."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for record in records for name in record if name != EVENT_TIME))
    columns: dict[str, Any] = {}
    for name in names:
        values = [_plain(record.get(name)) for record in records]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise TypeError(f"column {name!r} holds values of different types: {error}") from error
    columns[EVENT_TIME] = pa.array([event_ns] * len(records), pa.timestamp("ns", tz="UTC"))
    return pa.table(columns)


def _plain(value: Any) -> Any:
    """A value as a column can hold it: structured ones as JSON, paths and enums as text."""
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str)
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, enum.Enum) else value


# --- reading ----------------------------------------------------------------------------------------------


def _load(store: Store, table: str) -> pd.DataFrame:
    """All rows of all parts."""
    import pandas as pd
    import pyarrow as pa

    loaded = [part for part in _read_parts(store, table) if part.num_rows]
    if not loaded:
        return pd.DataFrame({name: [] for name in (*_keys(table), EVENT_TIME)})
    schema = _common_schema([part.schema for part in loaded])
    whole = pa.concat_tables([_fit(part, schema) for part in loaded])
    frame: pd.DataFrame = whole.to_pandas()
    # Arrow's nulls would turn whole numbers and truth values into floats and objects.
    for field in schema:
        if whole.column(field.name).null_count and (pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
            kind = pd.BooleanDtype() if pa.types.is_boolean(field.type) else pd.Int64Dtype()
            frame[field.name] = pd.array(whole.column(field.name).to_pylist(), dtype=kind)
    return frame


def _read_parts(store: Store, table: str) -> Iterable[pa.Table]:
    """The parts, oldest name first; on an object storage all of them are fetched at the same time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [_name(table, part) for part in parts(store, table)]
    paths = [store.path(name) for name in names]
    fetched = store.fs.cat(paths, on_error="return") if paths else {}
    for name, path in zip(names, paths, strict=True):
        data = fetched[path]
        if isinstance(data, FileNotFoundError):
            continue  # removed between the listing and the reading
        if isinstance(data, Exception):
            raise data
        try:
            yield pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{store.uri}/{name} is damaged ({str(error).splitlines()[0]}); "
                "remove it and do the work that wrote it again"
            ) from error


def _common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The union of the columns; one that has types without a common one (number and text) becomes text."""
    import pyarrow as pa

    distinct = list({str(schema): schema for schema in schemas}.values())
    fields: dict[str, pa.Field] = {}
    for schema in distinct:
        for field in schema.remove_metadata():
            held = fields.get(field.name)
            fields[field.name] = field if held is None else _common_field(held, field)
    return pa.schema(list(fields.values()))


def _common_field(one: pa.Field, other: pa.Field) -> pa.Field:
    import pyarrow as pa

    try:
        return pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.field(one.name, pa.string())


def _fit(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """A part with exactly the columns of the schema."""
    import pyarrow as pa

    there = set(part.column_names)
    columns = [
        part.column(field.name).cast(field.type) if field.name in there else pa.nulls(part.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _newest(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per key: the latest event, and of one event the last row; sorted by key."""
    latest = frame.sort_values(EVENT_TIME, kind="stable").drop_duplicates(list(keys), keep="last")
    return latest.sort_values(list(keys), kind="stable")


def _mark_lost(runs: pd.DataFrame) -> pd.DataFrame:
    if "status" not in runs or not len(runs):
        return runs
    import pandas as pd

    silent = pd.Timestamp.now(tz="UTC") - runs[EVENT_TIME] > pd.Timedelta(seconds=LOST_AFTER_S)
    runs.loc[(runs["status"] == "running") & silent, "status"] = "lost"
    return runs


def _query(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    import pandas as pd

    try:
        found = frame.query(where, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1] if "'" in str(error) else str(error)
        raise UserError(f"where {where!r}: {unknown('column', name, map(str, frame.columns))}") from error
    except Exception as error:  # pandas raises whatever its parser, or the comparison, happened to raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"where {where!r} is not a pandas query: {reason}; such as: metric == 'psnr' and distance > 6"
        ) from error
    if not isinstance(found, pd.DataFrame):
        raise UserError(f"where {where!r} selects no rows; such as: metric == 'psnr' and distance > 6")
    return found


def _select(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    missing = [name for name in columns if name not in frame]
    if missing and len(frame):
        raise UserError(*(unknown("column", name, map(str, frame.columns)) for name in missing))
    return frame.reindex(columns=list(columns)) if missing else frame[list(columns)]
