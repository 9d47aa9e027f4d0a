"""A file that only one can be the first to write: a link in a folder, a conditional put in an object storage."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.storage.local_files import TEMPORARY

if TYPE_CHECKING:
    from longtake.storage.store import Store

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
"""What filesystems without hard links say."""
logger = logging.getLogger(__name__)


def create(store: Store, rel: str, data: bytes, *, settle_s: float = 0.0) -> bytes | None:
    """Make a file that is not there yet, and return what lies there now; None where another has cleared it up.

    What it says decides whether it is ours, for an answer can be lost. `settle_s`: where a storage knows no conditional
    put, so long is waited for who comes last.

    Raises:
        UserError: the store is full, may not be written, or is out of reach.
    """
    problem: OSError | None = None
    try:
        if store.is_folder:
            _link(Path(store.path(rel)), data)
        else:
            _put(store, rel, data, settle_s)
    except OSError as error:
        problem = error
    try:
        return store.read_bytes(rel)
    except FileNotFoundError:
        if problem is None or (store.is_folder and isinstance(problem, FileNotFoundError)):
            return None  # what was made, or its folder, was cleared up by another
    store._explain(problem)


def _link(path: Path, data: bytes) -> None:
    """Make a whole file at once; FileExistsError if there is one. A link does it on NFS too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with path.open("xb") as file:
                file.write(data)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _put(store: Store, rel: str, data: bytes, settle_s: float) -> None:
    """A conditional put; a storage that knows none gets a plain one, and who comes last holds."""
    try:
        store.fs.pipe_file(store.path(rel), data, mode="create")
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        logger.warning("store %s knows no conditional put: of two writers at once the last one holds", store.uri)
        store.write_bytes(rel, data)
        time.sleep(settle_s)
