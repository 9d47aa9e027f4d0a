"""Folders for a while: gone when their block ends, or, where their process was killed, when the next one is made.

Each is locked while its process lives, whatever process ids and clocks say: one without a lock belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from longtake.storage import local_files

PREFIX = "longtake.scratch-"


@contextlib.contextmanager
def folder(beside: Path | None = None, prefix: str = PREFIX, *, keep_failed: bool = False) -> Iterator[Path]:
    """A new empty folder, in the system's place for such or beside other files.

    keep_failed: it stays where the block raises, for whoever looks for the reason, until the next one is made.
    """
    parent = beside or Path(tempfile.gettempdir())
    clear(parent, prefix)
    path, lock = _made(parent, prefix)
    try:
        yield path
    except BaseException:
        if not keep_failed:
            shutil.rmtree(path, ignore_errors=True)
        raise
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def clear(parent: Path, prefix: str = PREFIX) -> None:
    """Remove what processes of this user that were killed have left; what cannot be looked at stays."""
    with contextlib.suppress(OSError):
        for entry in local_files.entries(str(parent)):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is another's, it has gone, or it cannot be locked where it lies
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """A folder, and what holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another process took it for one that was left
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # a file system without locks: then nobody removes it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_dir():
                return path, lock
            os.close(lock)
