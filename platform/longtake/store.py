"""One URI, one place: a folder or s3://bucket/prefix, reached through ONE filesystem.

    datasets/NAME/   runs/ID/   sweeps/ID/   tables/NAME/   protocols/HASH.json   reports/

Ray and pyarrow are handed the same filesystem. Names given to the methods are relative to the store's root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias
from urllib.parse import urlsplit

from longtake.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from longtake.episodes import Dataset

Names: TypeAlias = list[str]

TEMPORARY = ".longtake-tmp-"
"""How the names of half-written files begin; no listing shows them."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def open_store(uri: str | Path, *, check: bool = False) -> Store:
    """The store at a folder or `s3://bucket/prefix`; nothing is touched unless `check`.

    `check` writes a small file, reads it back and removes it: what a verb that writes does before it starts.
    Raises UserError for a scheme it does not know and for a path that is a file; with `check` also for a
    folder that cannot be written and a bucket that is missing or out of reach.
    """
    store = Store(_normal(str(uri)))
    if check:
        store.require_writable()
    return store


class Store:
    """A place for datasets, runs and tables. Keeps only its URI when pickled (it travels to Ray workers)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._root = uri.removeprefix("s3://")
        self._bytes_read = 0
        self._counting = threading.Lock()

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def bytes_read(self) -> int:
        """Bytes that were asked for through this object, by `read_bytes` and `read_range`."""
        return self._bytes_read

    @property
    def is_folder(self) -> bool:
        """True for a folder of this machine, False for an object storage."""
        return not self.uri.startswith("s3://")

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem; paths for it come from `path`."""
        if self.is_folder:
            from fsspec.implementations.local import LocalFileSystem

            return LocalFileSystem(auto_mkdir=True)
        from longtake import s3

        return s3.client()

    def path(self, *parts: str) -> str:
        """The path of a name for `fs`."""
        return "/".join([self._root, *(part.strip("/") for part in parts if part.strip("/"))])

    def pyarrow(self) -> tuple[Any, str]:
        """(pyarrow filesystem, root path in it): what Ray's RunConfig and pyarrow take."""
        from pyarrow import fs

        if self.is_folder:
            os.makedirs(self._root, exist_ok=True)
            return fs.LocalFileSystem(), self._root
        return fs.PyFileSystem(fs.FSSpecHandler(self.fs)), self._root

    # --- bytes ---------------------------------------------------------------------------------------------

    def read_bytes(self, rel: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        return self._counted(self.fs.cat_file(self.path(rel)))

    def read_range(self, rel: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, in one request; fewer if the file ends. Raises FileNotFoundError."""
        return self._counted(self.fs.cat_file(self.path(rel), start=offset, end=offset + size))

    def _counted(self, data: bytes) -> bytes:
        with self._counting:
            self._bytes_read += len(data)
        return data

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """Whole files by name, None for one that is not there; an object storage sends many at the same time."""
        if self.is_folder:
            return {name: _read_if_there(self.path(name)) for name in names}
        found = self.fs.cat([self.path(name) for name in names], on_error="return") if names else {}
        read: dict[str, bytes | None] = {}
        for name in names:
            data = found[self.path(name)]
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise data
            read[name] = None if isinstance(data, FileNotFoundError) else data
        return read

    def open(self, rel: str) -> Any:
        """A file to read at any place, for pyarrow. Raises FileNotFoundError."""
        import pyarrow as pa

        # A file that is mapped stays readable when it is removed.
        return pa.memory_map(self.path(rel)) if self.is_folder else pa.PythonFile(self.fs.open(self.path(rel), "rb"))

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write a whole file at once: a reader sees the old one, the new one, or none; never a part of one.

        Raises UserError if the store is full or may not be written.
        """
        try:
            if self.is_folder:
                _replace(Path(self.path(rel)), data)
            else:
                # A single put: the object is there with its last byte.
                self.fs.pipe_file(self.path(rel), data, chunksize=max(len(data), 1) + 1)
        except OSError as error:
            self._explain(error)

    def exists(self, rel: str) -> bool:
        """Whether a file or folder of that name is there."""
        return bool(self.fs.exists(self.path(rel)))

    def list(self, rel: str = "") -> Names:
        """Names (from the store's root on) of what lies directly in a folder, sorted; empty without one."""
        try:
            found = self.fs.ls(self.path(rel), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return self._names(path for path in found if path.strip("/") != self.path(rel).strip("/"))

    def find(self, rel: str = "") -> Names:
        """Names of all files below a folder, sorted; empty if there is none."""
        if self.is_folder:  # fsspec takes a folder for empty if a file vanishes while it looks
            walk = os.walk(self.path(rel))
            return self._names(os.path.join(folder, name) for folder, _, names in walk for name in names)
        try:
            return self._names(self.fs.find(self.path(rel)))
        except FileNotFoundError:
            return []

    def starting(self, rel: str) -> Names:
        """Names of the files of one folder that begin with `rel`, sorted."""
        folder, _, start = rel.rpartition("/")
        if self.is_folder:
            try:
                there = os.listdir(self.path(folder))
            except FileNotFoundError:
                return []
            return self._names(self.path(folder, name) for name in there if name.startswith(start))
        names = self._names(self.fs.find(self.path(folder), prefix=start))
        return [name for name in names if "/" not in name[len(folder) + 1 :]]

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; one that is not there is no error."""
        try:
            if self.is_folder:
                for name in names:
                    Path(self.path(name)).unlink(missing_ok=True)
            elif names:
                self.fs.rm([self.path(name) for name in names])
        except OSError as error:
            self._explain(error)

    def remove_half_written(self, rel: str, age_s: float) -> None:
        """Remove what writers that were killed left below a folder, once it is older than any write takes."""
        if not self.is_folder:
            return  # an object storage keeps no half of a put
        for path in Path(self.path(rel)).rglob(f"{TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > age_s:
                    path.unlink()

    def glob(self, pattern: str) -> Names:
        """Names that match a shell pattern such as `runs/*/config.yaml`, sorted."""
        return self._names(self.fs.glob(self.path(pattern)))

    def upload_dir(self, local: str | Path, rel: str) -> None:
        """Copy what lies in a local folder into a folder of the store; nothing there is removed."""
        local = Path(local)
        files = sorted(path for path in local.rglob("*") if path.is_file())
        try:
            if files:
                targets = [self.path(rel, path.relative_to(local).as_posix()) for path in files]
                self.fs.put([str(path) for path in files], targets)
        except OSError as error:
            self._explain(error)

    def download_dir(self, rel: str, local: str | Path) -> None:
        """Copy a folder of the store into a local one. Raises FileNotFoundError if nothing is there."""
        names = self.find(rel)
        if not names:
            raise FileNotFoundError(f"{self.uri}: nothing in {rel}")
        prefix = self.path(rel)
        targets = [Path(local) / self.path(name)[len(prefix) :].strip("/") for name in names]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get([self.path(name) for name in names], [str(target) for target in targets])

    def _names(self, paths: Iterable[str]) -> Names:
        names = (path[len(self._root) :].strip("/") for path in paths)
        return sorted(name for name in names if not name.rpartition("/")[2].startswith(TEMPORARY))

    # --- tables and datasets -------------------------------------------------------------------------------

    def table(self, name: str, where: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A table as a pandas DataFrame; see `longtake.tables.read`."""
        from longtake import tables

        return tables.read(self, name, where=where, columns=columns)

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name; see `longtake.episodes.Dataset`."""
        from longtake.episodes import Dataset

        return Dataset(self, name)

    # --- preflight -----------------------------------------------------------------------------------------

    def require_exists(self) -> None:
        """Raise UserError if there is no such folder or bucket: what a verb that only reads asks first."""
        if self.is_folder:
            if not Path(self._root).is_dir():
                raise UserError(f"no store at {self.uri}: the folder does not exist; give --store or LONGTAKE_STORE")
            return
        try:
            with self.fs.at_once():
                self.fs.call_s3("head_bucket", Bucket=self._root.split("/")[0])
        except Exception as error:
            self._explain(error)

    def require_writable(self) -> None:
        """Raise UserError if what is written here does not come back the same."""
        if not self.is_folder:
            self.require_exists()
        probe = f"{TEMPORARY}probe-{os.getpid()}-{os.urandom(4).hex()}"
        self.write_bytes(probe, b"longtake")
        back = self.read_bytes(probe)
        self.fs.rm_file(self.path(probe))
        if back != b"longtake":
            raise UserError(f"store {self.uri}: a small file came back changed; this storage cannot be trusted")

    def free_bytes(self) -> int | None:
        """Bytes free on the disk of a folder; None where that cannot be known."""
        return shutil.disk_usage(_standing(Path(self._root))).free if self.is_folder else None

    def require_space(self, size: int) -> None:
        """Raise UserError if `size` bytes do not fit."""
        free = self.free_bytes()
        if free is not None and free < size:
            raise UserError(
                f"no space: about {size / 1e9:.2f} GB needed in {self.uri}, {free / 1e9:.2f} GB free; "
                "free some or give another --store"
            )

    def _explain(self, error: Exception) -> NoReturn:
        """Raise the UserError for what a user can mend, and the error itself for everything else."""
        code = getattr(error, "errno", None)
        name = type(error).__name__
        if code in _FULL:
            raise UserError(f"no space left in store {self.uri}") from error
        if code in _FORBIDDEN or isinstance(error, PermissionError):
            raise UserError(f"store {self.uri} cannot be written: {_reason(error)}") from error
        if not self.is_folder and isinstance(error, FileNotFoundError):
            raise UserError(f"store {self.uri}: no such bucket; make it first or mend the name") from error
        if name in ("NoCredentialsError", "InvalidRegionError"):
            raise UserError(f"store {self.uri} cannot be reached: {error}") from error
        raise error


def _normal(uri: str) -> str:
    """An absolute folder, or s3://bucket/prefix without a slash at its end."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UserError(f"store {uri!r} names no bucket; expected s3://BUCKET/PREFIX")
        if "@" in parts.netloc:  # it would be in every table and log
            told = parts.netloc.rpartition("@")[2]
            raise UserError(f"store: a key before the bucket {told}; keys come from AWS_* or ~/.aws, never from a URI")
        return f"s3://{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
    if parts.scheme not in ("", "file"):
        raise UserError(f"store {uri!r}: unknown scheme {parts.scheme!r}; expected a folder or s3://BUCKET/PREFIX")
    path = Path(os.path.abspath(os.path.expanduser(uri.removeprefix("file://") or ".")))
    if path.exists() and not path.is_dir():
        raise UserError(f"store {path} is a file; expected a folder or s3://BUCKET/PREFIX")
    return str(path)


def _replace(path: Path, data: bytes) -> None:
    """Write beside the file, sync, then rename: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_if_there(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _standing(path: Path) -> Path:
    """The nearest folder on the way to a path that exists already."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
