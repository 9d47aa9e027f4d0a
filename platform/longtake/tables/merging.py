"""Tables stay quick by themselves: when there are many parts, a thread of a process that writes makes one file of them.

A part costs a reader about a millisecond, and rewriting a table costs as much as it is large; so a large one is
rewritten more rarely. It is `longtake.tables.compaction` that does it, which nobody has to wait for.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.tables.compaction import compact

if TYPE_CHECKING:
    from longtake.storage.store import Store

LOOK_EVERY = 50
"""Appends of a process to a table between two looks at how many parts there are."""

MANY, AT_MOST = 200, 1000
"""Live parts of a small table, and of any, that are merged."""

SMALL_BYTES = 16_000_000
"""Of the files of a table: one that is so many times as large may have so many times as many parts."""

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_appends: dict[tuple[str, str], int] = {}
_threads: dict[tuple[str, str], threading.Thread] = {}


def note_append(store: Store, table: str) -> None:
    """Count an append of this process; every so often one begins a look."""
    with _lock:
        count = _appends[store.uri, table] = _appends.get((store.uri, table), 0) + 1
    if count % LOOK_EVERY == 0:
        look(store, table)


def look(store: Store, table: str) -> threading.Thread:
    """Merge a table's parts where there are many, in a thread; the one that is at it already, if there is one."""
    with _lock:
        thread = _threads.get((store.uri, table))
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_merge, args=(store, table), name=f"merging {table}")
            _threads[store.uri, table] = thread
            thread.start()
    return thread


def are_many(store: Store, table: str) -> bool:
    """Whether a table has so many parts that merging them is worth its cost; one listing."""
    sizes = store.sizes(f"tables/{table}")
    parts = sum(name.endswith(".parquet") and not name.startswith("compacted-") for name in sizes)
    return parts >= min(AT_MOST, MANY * max(1.0, sum(sizes.values()) / SMALL_BYTES))


def _merge(store: Store, table: str) -> None:
    try:
        if are_many(store, table):
            compact(store, table)
    except (OSError, UserError) as error:  # the next look tries again, and who reads the table is told what is wrong
        logger.debug("table %s is not merged: %s", table, error)
