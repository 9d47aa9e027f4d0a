"""How long ago files were written, by the clock of what keeps them: writers and readers may be minutes apart."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from longtake.storage import local_files

if TYPE_CHECKING:
    from longtake.storage.store import Store


def ages(store: Store, rel: str) -> dict[str, float]:
    """Seconds since each file below a folder was last written, by its name in the store. Raises UserError."""
    with local_files.errors_told(f"{store.uri}/{rel}"):
        if store.is_folder:
            now, root = _now_in(store.path(rel)), len(store.path("")) + 1
            return {entry.path[root:]: now - entry.stat().st_mtime for entry in local_files.files(store.path(rel))}
        objects = store.fs.find(store.path(rel), detail=True)
        now = _now_of(store)
        written = {path: info["LastModified"].timestamp() for path, info in objects.items()}
    return {path[len(store.path("")) + 1 :]: now - time_ for path, time_ in written.items()}


def _now_in(folder: str) -> float:
    """The time of who keeps a folder, which may be a server: that of a new file; ours where none can be made."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix=local_files.TEMPORARY, dir=folder)
        try:
            return os.fstat(handle).st_mtime
        finally:
            os.close(handle)
            os.unlink(path)
    return time.time()


def _now_of(store: Store) -> float:
    """The time of an object storage, which each of its answers tells."""
    bucket, _, prefix = store.path("").partition("/")
    answer = store.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
