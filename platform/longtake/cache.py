"""What was read from an object storage, kept on the local disk: sparse copies of shards, filled by what is read.

    LONGTAKE_CACHE_GB     how much of the disk all of them may take; nothing is kept if not set, or 0
    LONGTAKE_CACHE        their folder, ~/.cache/longtake if not set

A chunk's own checksum tells whether it is there: what is a hole, half written or damaged is read from the storage
again. So there is no index and no lock, and any number of processes fill one copy: they write the same bytes to the
same places. What fits is kept. Nothing of a dataset makes room for more of it, since epochs go through all of it: what
was read longest ago is what comes next. Another dataset does, whole, once nobody has read it for an hour.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.shards import Chunk

log = logging.getLogger(__name__)

LEFT = 0.05  # of the disk, which stays free
COUNTED = 128 * 2**20  # bytes written here until what all processes wrote is counted again
READ_S = 600.0  # between two marks that a dataset is being read
FORGOTTEN_S = 3600.0  # after which it may make room
OURS = "longtake-" + 24 * "?"  # whatever else is in the folder is not touched


def limit() -> int:
    """Bytes that may be kept, as the environment says. Raises UserError for what is no number."""
    given = os.environ.get("LONGTAKE_CACHE_GB", "")
    try:
        gigabytes = float(given or 0)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise UserError(f"LONGTAKE_CACHE_GB: {given!r} is no number of gigabytes, 0 or more")
    return round(gigabytes * 1e9)


class Cache:
    """The part of one dataset; `of` tells it from every other, so also from one of its name made anew."""

    def __init__(self, of: str, limit: int) -> None:
        self._all = Path(os.environ.get("LONGTAKE_CACHE") or Path.home() / ".cache" / "longtake")
        self._folder = self._all / f"longtake-{hashlib.sha256(of.encode()).hexdigest()[:24]}"
        self._limit = limit
        self._room = 0  # bytes that may be written until all is counted again
        self._marked = 0.0
        self._full = False

    def get(self, name: str, offset: int, size: int, chunks: Sequence[Chunk], fetch: Callable[[], bytes]) -> bytes:
        """Bytes of a shard that hold these chunks: of the copy here, if it has them whole, or what `fetch` gives."""
        path = self._folder / name.rpartition("/")[2]
        kept = self._read(path, offset, size)
        if all(chunk.is_in(kept, offset) for chunk in chunks):
            return kept
        found = fetch()
        if not self._full:
            self._write(path, offset, found)
        return found

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        now = time.time()
        try:
            if now - self._marked > READ_S:
                os.utime(self._folder)
                self._marked = now
            with open(path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError:
            return b""

    def _write(self, path: Path, offset: int, data: bytes) -> None:
        try:
            if self._room < len(data):
                self._count(len(data))
            if not self._full:
                self._room -= len(data)
                self._folder.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    os.pwrite(file, data, offset)
                finally:
                    os.close(file)
        except OSError as error:
            self._full = True
            log.warning("no more is kept in %s: %s", self._all, error.strerror)

    def _count(self, wanted: int) -> None:
        """See how much may be written, by all processes that fill it; make room if there is too little."""
        self._all.mkdir(parents=True, exist_ok=True)
        last_read = {path: path.stat().st_mtime for path in self._all.glob(OURS) if path != self._folder}
        idle = [path for path, at in sorted(last_read.items(), key=itemgetter(1)) if at < time.time() - FORGOTTEN_S]
        while (free := self._free()) < wanted and idle:
            shutil.rmtree(idle.pop(0), ignore_errors=True)
        self._room, self._full = min(free, COUNTED), free < wanted
        if self._full:
            log.warning("the cache in %s is full: more of this dataset is read from its storage", self._all)

    def _free(self) -> int:
        disk = shutil.disk_usage(self._all)
        return min(self._limit - _taken(self._all), disk.free - round(LEFT * disk.total))


def _taken(folder: Path) -> int:
    """Bytes on the disk of all datasets: of a sparse file only what was written."""
    taken = 0
    for path in folder.glob(f"{OURS}/*"):
        with contextlib.suppress(FileNotFoundError):  # another process made room
            taken += path.stat().st_blocks * 512
    return taken
