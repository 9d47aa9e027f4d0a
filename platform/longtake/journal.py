"""Optuna's journal, in a store: what a study is made of survives its driver."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages.journal import BaseJournalBackend

if TYPE_CHECKING:
    from longtake.store import Store


class Journal(BaseJournalBackend):
    """Optuna's journal in a store: lines of JSON, one writer.

    What is appended within `together` is one write. `left` counts the lines of a write that follow, so that
    what a power cut tore off is known when it is read, and the whole write did not happen.
    """

    def __init__(self, store: Store, rel: str) -> None:
        self._store, self._rel = store, rel
        self._logs: list[dict[str, Any]] = []
        self._saved = 0
        self._depth = 0
        if store.exists(rel):
            self._read()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The logs from a number on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add logs; they are in the store when the outermost `together` ends."""
        with self.together():
            self._logs += logs

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Everything that is appended inside is written at once."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._saved < len(self._logs):
                self._write()

    def _write(self) -> None:
        new = self._logs[self._saved :]
        for left, log in enumerate(reversed(new)):
            log["left"] = left
        if self._store.is_folder and self._saved:
            with Path(self._store.path(self._rel)).open("ab") as file:
                file.write(_lines(new))
                file.flush()
                os.fsync(file.fileno())
        else:
            self._store.write_bytes(self._rel, _lines(self._logs))
        self._saved = len(self._logs)

    def _read(self) -> None:
        whole = self._store.read_bytes(self._rel)
        for line in whole.split(b"\n")[:-1]:
            try:
                self._logs.append(json.loads(line))
            except json.JSONDecodeError:
                break
        while self._logs and self._logs[-1].get("left"):
            self._logs.pop()
        self._saved = len(self._logs)
        if _lines(self._logs) != whole:
            self._store.write_bytes(self._rel, _lines(self._logs))


def _lines(logs: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
