"""A frame on the terminal, in a pipe or in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.errors import UserError, unknown
from longtake.jobs.display.table_formats import FORMATS, print_table
from longtake.storage.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    Plot = Callable[[pd.DataFrame, Store], Figure]


def show(frame: pd.DataFrame, format: str | None = None, out: str | None = None) -> None:
    """Print a frame or write it to `out`. Without a format: by the file's ending, else a table."""
    check_output(format, out)
    kind = format or (Path(out).suffix.removeprefix(".") if out else "table")
    if out:
        data = FORMATS[kind](frame)
        try:
            Path(out).write_bytes(data)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    elif kind == "parquet":
        sys.stdout.buffer.write(FORMATS[kind](frame))
    elif kind == "table" and sys.stdout.isatty():
        print_table(frame)
    else:
        print(FORMATS[kind](frame).decode(), end="")


def store_to_show(uri: str, format: str | None = None, out: str | None = None) -> Store:
    """The store that a verb shows something of, after a look at how. Raises UserError for either."""
    check_output(format, out)
    store = open_store(uri)
    store.require_exists()
    return store


def check_output(format: str | None, out: str | None) -> None:
    """Refuse a format that is not there before anything is read."""
    kind = format or (Path(out).suffix.removeprefix(".") if out else "table")
    if kind not in FORMATS:
        raise UserError(unknown("format", kind, FORMATS))
    if kind == "parquet" and not out and sys.stdout.isatty():
        raise UserError("--format parquet is not for a terminal: give --out FILE.parquet or a pipe")


def say_empty(table: str, store: Store, where: str | None) -> None:
    """Tell on stderr that there is nothing, and why; what is printed stays readable by programs."""
    reason = f"no row with {where}" if where else "it has no rows yet"
    print(f"table {table} in store {store.uri}: {reason}", file=sys.stderr)
