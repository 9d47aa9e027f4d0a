"""Optuna's journal, in a store: what a study is made of survives its driver, and no damage to it passes for less."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages.journal import BaseJournalBackend

from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.storage.store import Store

SUMMED = re.compile(rb'(\{.*),"sum":"([0-9a-f]{16})"\}')
UNSUMMED = re.compile(rb'(\{.*"left":\d+)\}')
"""A line of a journal that was written before lines had sums: the next write gives it one."""
logger = logging.getLogger(__name__)


class StoreJournalBackend(BaseJournalBackend):
    """Optuna's journal in a store: lines of JSON, one writer.

    What is appended within `together` is one write. `left` counts the lines of a write that follow, so that what a
    power cut tore off is known when it is read, and the whole write did not happen. `sum` is a digest of the line and
    of all before it: a line that was changed, lost, doubled or moved is known too, and then nothing is read or written.
    """

    def __init__(self, store: Store, rel: str, before_write: Callable[[], None] = lambda: None) -> None:
        """Read what is there; nothing is written before something is appended.

        Args:
            before_write: raises where this process may no longer write.

        Raises:
            UserError: a line is damaged; names file and line.
        """
        self._store, self._rel, self._before_write = store, rel, before_write
        self.where = f"{store.uri}/{rel}"
        self._depth = 0
        try:
            whole = store.read_bytes(rel)
        except FileNotFoundError:
            whole = b""
        read = _read(whole, self.where)
        self._logs, self._sum, self._torn = read.logs, read.sum, whole[read.size :]
        self._saved = len(self._logs)
        self._size = read.size if read.appendable else None
        if self._torn:
            logger.warning("%s: its last write was torn (%d bytes): not made", self.where, len(self._torn))

    @property
    def is_torn(self) -> bool:
        """Whether the last write that was begun did not come to its end."""
        return bool(self._torn)

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
        self._before_write()
        if self._torn:
            self._store.write_bytes(f"{self._rel}.torn", self._torn)
            self._torn = b""
        if self._store.is_folder and self._size:
            data, self._sum = _lines(new, self._sum)
            self._append(data, self._size)
            self._size += len(data)
        else:
            data, self._sum = _lines(self._logs, b"")
            self._store.write_bytes(self._rel, data)
            self._size = len(data)
        self._saved = len(self._logs)

    def _append(self, data: bytes, size: int) -> None:
        """Add to a file that is as long as it was left, or leave it as long as it was."""
        with Path(self._store.path(self._rel)).open("r+b") as file:
            if file.seek(0, os.SEEK_END) != size:
                raise UserError(f"{self.where}: another process has written to it")
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise


@dataclass(frozen=True)
class _Read:
    """What a journal says: its logs, the sum of the last line, the bytes that they take."""

    logs: list[dict[str, Any]]
    sum: bytes
    size: int
    appendable: bool


def _read(whole: bytes, where: str) -> _Read:
    """Raises UserError for anything but lines as they were written, of which the last write may be torn."""
    *lines, tail = whole.split(b"\n")
    logs: list[dict[str, Any]] = []
    sums, ends, summed = [b""], [0], SUMMED.fullmatch((lines or [tail])[0]) is not None
    for number, line in enumerate(lines, 1):
        log, sum_, problem = _parse(line, sums[-1], summed)
        if log is None:
            raise UserError(_damaged(where, number, problem))
        logs.append(log)
        sums.append(sum_)
        ends.append(ends[-1] + len(line) + 1)
    log, sum_, _ = _parse(tail, sums[-1], summed)
    if log is None and _parse(tail[:-1], sums[-1], summed)[0] is not None:
        raise UserError(_damaged(where, len(lines) + 1, "another byte stands where it ended"))
    if log is not None:  # all of the last write but its line's end
        logs.append(log)
        sums.append(sum_)
        ends.append(len(whole))
    while logs and logs[-1].get("left"):
        for each in (logs, sums, ends):
            each.pop()
    return _Read(logs, sums[-1], ends[-1], appendable=summed and ends[-1] == len(whole) and not tail)


def _parse(line: bytes, before: bytes, summed: bool) -> tuple[dict[str, Any] | None, bytes, str]:
    """What a line says and its sum, or what is wrong with it; `before` is the sum of the line before."""
    match = (SUMMED if summed else UNSUMMED).fullmatch(line)
    if match is None:
        return None, b"", "it is no record"
    if summed and _sum(match[1], before) != match[2]:
        return None, b"", "its checksum does not match: it, or the one before it, is not the line that was written"
    try:
        log = json.loads(line)
    except (ValueError, RecursionError):
        return None, b"", "it is no JSON"
    if not isinstance(log.get("op_code"), int):
        return None, b"", "it is no record of Optuna's"
    return log, match[2] if summed else b"", ""


def _damaged(where: str, line: int, problem: str) -> str:
    sweep = where.split("/")[-2]
    return (
        f"{where}, line {line}: {problem}. The file is left as it is: put a copy of it back, or begin a new sweep that "
        f"learns from what the table `trials` holds: --set warm_start=[{sweep}]"
    )


def _lines(logs: list[dict[str, Any]], before: bytes) -> tuple[bytes, bytes]:
    """The lines of logs, and the sum of the last."""
    lines = []
    for log in logs:
        body = json.dumps({k: v for k, v in log.items() if k != "sum"}, separators=(",", ":")).encode()[:-1]
        before = _sum(body, before)
        lines.append(body + b',"sum":"' + before + b'"}\n')
    return b"".join(lines), before


def _sum(body: bytes, before: bytes) -> bytes:
    return hashlib.blake2b(before + body, digest_size=8).hexdigest().encode()
