"""A writer of the tables' benchmark, in a process of its own that imports little, so that it can be killed often."""

from __future__ import annotations

import os

from longtake.storage.store import open_store
from longtake.tables import table as tables

BEGUN = "begun:"


def write(uri: str, name: str, parts: int, rows: int, record: str) -> None:
    """Append `parts` parts of `rows` rows to `steps`; the file `record` says which were begun, which acknowledged."""
    store = open_store(uri)
    handle = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(parts):
        part = f"{name}-{number}"
        rows_of_part = [{"run": part, "step": step, "loss": 0.5} for step in range(rows)]
        os.write(handle, f"{BEGUN}{part}\n".encode())
        tables.append(store, "steps", rows_of_part, part)
        os.write(handle, f"{part}\n".encode())
