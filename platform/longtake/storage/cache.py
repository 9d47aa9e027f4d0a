"""What was read from an object storage, kept on the local disk: sparse copies of shards, filled by what is read.

    LONGTAKE_CACHE_GB     how much of the disk all of them may take; nothing is kept if not set, or 0
    LONGTAKE_CACHE        their folder, ~/.cache/longtake if not set

A chunk's own checksum tells whether it is there: what is a hole, half written or damaged is read from the storage
again. So there is no index and no lock, and any number of processes fill one copy: they write the same bytes to the
same places. What fits is kept. Nothing of a dataset makes room for more of it, since epochs go through all of it: what
was read longest ago is what comes next. Another dataset does, whole, once nobody has read it for an hour. While there
is room, whole blocks are fetched for a clip, whose other clips come later in the epoch: a tenth of the requests. Each
process knows what the others wrote but for COUNTED bytes, so that they may go beyond the limit by that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.datasets.shard import Chunk

Fetch = Callable[[int, int], bytes]

log = logging.getLogger(__name__)

BLOCK = 4 * 2**20  # bytes that are fetched and kept at once: ten clips or so, which all come in an epoch
LOCKS = 1024  # for blocks that are being fetched
LEFT = 0.05  # of the disk, which stays free
COUNTED = 128 * 2**20  # bytes written, at most, until what all processes wrote is counted again
READ_S = 600.0  # between two marks that a dataset is being read, and between two looks whether there is room again
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


def folder() -> Path:
    """Where all of it lies, as the environment says. Raises UserError for what is no place."""
    given = os.environ.get("LONGTAKE_CACHE", "")
    try:
        place = Path(given).expanduser() if given else Path.home() / ".cache" / "longtake"
    except RuntimeError:
        raise UserError(f"LONGTAKE_CACHE: {given or 'not set'}, and there is no home folder; give a folder") from None
    if not place.is_absolute():  # workers are somewhere else
        raise UserError(f"LONGTAKE_CACHE: {given!r} is no absolute path")
    return place


class Cache:
    """The part of one dataset; `of` tells it from every other, so also from one of its name made anew."""

    def __init__(self, of: str, limit: int) -> None:
        self._all = folder()
        self._folder = self._all / f"longtake-{hashlib.sha256(of.encode()).hexdigest()[:24]}"
        self._limit = limit
        self._fetching = [Lock() for _ in range(LOCKS)]
        self._counting = Lock()
        self._room = 0  # bytes that may be written until all is counted again
        self._marked = 0.0
        self._shut_until = 0.0  # by the clock that never goes back: nothing is written before

    def get(self, name: str, offset: int, size: int, chunks: Sequence[Chunk], fetch: Fetch) -> tuple[bytes, int, bool]:
        """Bytes of a shard that hold these chunks, where they begin, and whether the chunks were compared already.

        fetch(offset, size) asks the storage, for whole BLOCKs while they can be kept.
        """
        path = self._folder / name.rpartition("/")[2]
        if (data := self._whole(path, offset, size, chunks)) is not None:
            return data, offset, True
        with self._fetching[hash((name, offset // BLOCK)) % len(self._fetching)]:
            if (data := self._whole(path, offset, size, chunks)) is not None:  # another thread fetched it meanwhile
                return data, offset, True
            begin, end = offset // BLOCK * BLOCK, -(-(offset + size) // BLOCK) * BLOCK
            if self._has_room(end - begin):
                data = fetch(begin, end - begin)
                self._write(path, begin, data)
                return data, begin, False
        return fetch(offset, size), offset, False

    def _whole(self, path: Path, offset: int, size: int, chunks: Sequence[Chunk]) -> bytes | None:
        data = self._read(path, offset, size)
        return data if all(chunk.is_in(data, offset) for chunk in chunks) else None

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
            self._folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(file, data, offset)
            finally:
                os.close(file)
        except FileNotFoundError:  # another process made room just now
            pass
        except OSError as error:
            self._shut(str(error.strerror))

    def _has_room(self, wanted: int) -> bool:
        """Whether so much may be written beside what all processes wrote; another dataset may go for it."""
        with self._counting:
            if time.monotonic() < self._shut_until:
                return False
            if self._room < wanted:
                try:
                    self._count(wanted)
                except OSError as error:
                    self._shut(str(error.strerror))
                    return False
            if self._room < wanted:
                self._shut("it is full")
                return False
            self._room -= wanted
            return True

    def _count(self, wanted: int) -> None:
        self._all.mkdir(parents=True, exist_ok=True)
        idle = []
        for path in self._all.glob(OURS):
            with contextlib.suppress(FileNotFoundError):
                if path != self._folder and path.stat().st_mtime < time.time() - FORGOTTEN_S:
                    idle.append((path.stat().st_mtime, path))
        idle.sort(reverse=True)
        while (free := self._free()) < wanted and idle:
            shutil.rmtree(idle.pop()[1], ignore_errors=True)
        self._room = min(free, max(wanted, min(free // 8, COUNTED)))

    def _shut(self, why: str) -> None:
        """Keep nothing more for a while."""
        self._shut_until = time.monotonic() + READ_S
        log.warning("the cache in %s takes no more for now: %s", self._all, why)

    def _free(self) -> int:
        disk = shutil.disk_usage(self._all)
        return min(self._limit - _taken(self._all), disk.free - round(LEFT * disk.total))


def _taken(folder: Path) -> int:
    """Bytes on the disk of all datasets: of a sparse file only what was written."""
    taken = 0
    for part in folder.glob(OURS):
        with contextlib.suppress(FileNotFoundError):  # another process made room
            for file in os.scandir(part):
                taken += file.stat().st_blocks * 512
    return taken
