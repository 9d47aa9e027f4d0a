"""One URI, one place: a folder or s3://bucket/prefix, reached through ONE filesystem.

    datasets/NAME/   runs/ID/   sweeps/ID/   tables/NAME/   protocols/HASH.json   reports/

Ray and pyarrow are handed the same filesystem. Names given to the methods are relative to the store's root.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from longtake.errors import UserError
from longtake.storage import local_files, uris

if TYPE_CHECKING:
    import pandas as pd

    from longtake.datasets.dataset import Dataset

Names: TypeAlias = list[str]

TEMPORARY = local_files.TEMPORARY


def open_store(uri: str | Path, *, check: bool = False) -> Store:
    """The store at a folder or `s3://bucket/prefix`; nothing is touched unless `check`.

    `check` writes a small file, reads it back and removes it: what a verb that writes does before it starts.
    Raises UserError for a scheme it does not know and for a path that is a file; with `check` also for a
    folder that cannot be written and a bucket that is missing or out of reach.
    """
    store = Store(uris.normal(str(uri)))
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
    def argument(self) -> str:
        """Its URI as a word of a command that is printed, to be pasted into a shell."""
        return shlex.quote(self.uri)

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
        from longtake.storage import s3

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
        """A whole file. Raises FileNotFoundError, and UserError for one that cannot be read."""
        with self._errors_told(rel):
            return self._counted(self.fs.cat_file(self.path(rel)))

    def read_range(self, rel: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, in one request; fewer if the file ends. Raises as `read_bytes`."""
        with self._errors_told(rel):
            return self._counted(self.fs.cat_file(self.path(rel), start=offset, end=offset + size))

    def _counted(self, data: bytes) -> bytes:
        with self._counting:
            self._bytes_read += len(data)
        return data

    def read_many(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """Whole files by name, None for one that is not there; an object storage sends many at the same time."""
        if self.is_folder:
            return {name: self._read_if_there(name) for name in names}
        if any(_is_pattern(self.path(name)) for name in names):
            return {name: self._object_if_there(name) for name in names}
        paths = [self.path(name) for name in names]
        # In one piece each: for several, s3fs would first ask how large each object is.
        contents = self.fs.cat(paths, on_error="return", max_concurrency=1) if names else {}
        read: dict[str, bytes | None] = {}
        for name in names:
            data = contents[self.path(name)]
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                with self._errors_told(name):
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
                local_files.write(Path(self.path(rel)), data, TEMPORARY)
            else:
                # A single put: the object is there with its last byte.
                self.fs.pipe_file(self.path(rel), data, chunksize=max(len(data), 1) + 1)
        except OSError as error:
            self._explain(error)

    # --- what is there: an error of looking is a UserError that names the path, and never reads as "nothing" ------

    def exists(self, rel: str) -> bool:
        """Whether a file or folder of that name is there. Raises UserError if that cannot be known."""
        with self._errors_told(rel):
            return local_files.is_there(self.path(rel)) if self.is_folder else bool(self.fs.exists(self.path(rel)))

    def list(self, rel: str = "") -> Names:
        """Names (from the store's root on) of what lies directly in a folder, sorted; empty without one.

        Raises UserError, as all listings do, for a folder that cannot be listed.
        """
        with self._errors_told(rel):
            return self._names(path for path, _ in self._lying_in(rel))

    def find(self, rel: str = "") -> Names:
        """Names of all files below a folder, sorted; empty if there is none."""
        with self._errors_told(rel):
            if self.is_folder:
                return self._names(entry.path for entry in local_files.files(self.path(rel)))
            return self._names(self.fs.find(self.path(rel)))

    def sizes(self, rel: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by its name in that folder, sorted."""
        with self._errors_told(rel):
            if self.is_folder:
                by_name = local_files.sizes(self.path(rel))
            else:
                below = self.fs.find(self.path(rel), detail=True).items()
                by_name = {path[len(self.path(rel)) :].strip("/"): int(info["size"]) for path, info in below}
        return {name: by_name[name] for name in sorted(by_name) if not _is_temporary(name)}

    def starting(self, rel: str) -> Names:
        """Names of the files of one folder that begin with `rel`, sorted."""
        folder, _, start = rel.rpartition("/")
        with self._errors_told(folder):
            if self.is_folder:
                entries = local_files.entries(self.path(folder))
                return self._names(entry.path for entry in entries if entry.name.startswith(start))
            names = self._names(self.fs.find(self.path(folder), prefix=start))
        return [name for name in names if "/" not in name[len(folder) + 1 :]]

    def glob(self, pattern: str) -> Names:
        """Names that match a shell pattern such as `runs/*/config.yaml`, sorted; `*` stays within a folder."""
        *folders, last = pattern.split("/")
        paths = [""]
        for part in folders:
            paths = [name for above in paths for name in self._matching(above, part, only_folders=True)]
        return sorted(name for above in paths for name in self._matching(above, last))

    def _matching(self, folder: str, pattern: str, only_folders: bool = False) -> Names:
        if not any(sign in pattern for sign in "*?["):
            name = f"{folder}/{pattern}".strip("/")
            return [name] if only_folders or self.exists(name) else []
        with self._errors_told(folder):
            names = self._names(path for path, inner in self._lying_in(folder) if inner or not only_folders)
        return [name for name in names if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)]

    def _lying_in(self, rel: str) -> Sequence[tuple[str, bool]]:
        """Path of what lies directly in a folder, and whether it is a folder."""
        if self.is_folder:
            return [(entry.path, entry.is_dir()) for entry in local_files.entries(self.path(rel))]
        try:
            listed = self.fs.ls(self.path(rel), detail=True)
        except FileNotFoundError:
            return []
        entries = ((info["name"], info["type"] == "directory") for info in listed)
        return [(path, inner) for path, inner in entries if path.strip("/") != self.path(rel).strip("/")]

    def _errors_told(self, rel: str) -> contextlib.AbstractContextManager[None]:
        return local_files.errors_told(self.path(rel) if self.is_folder else f"{self.uri}/{rel}".rstrip("/"))

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; one that is not there is no error."""
        try:
            if self.is_folder:
                for name in names:
                    Path(self.path(name)).unlink(missing_ok=True)
            elif names:
                self._remove_objects([self.path(name) for name in names])
        except OSError as error:
            self._explain(error)

    def _remove_objects(self, paths: Names) -> None:
        """Many in one request; those that fsspec would take for a pattern one by one."""
        plain = [path for path in paths if not _is_pattern(path)]
        if plain:
            self.fs.rm(plain)
        for path in set(paths).difference(plain):
            self.fs.rm_file(path)

    def remove_folder(self, rel: str) -> None:
        """Remove a folder with all below it; one that is not there is no error."""
        if not self.is_folder:
            return self.remove(self.find(rel))
        try:
            shutil.rmtree(self.path(rel))
        except FileNotFoundError:
            return
        except OSError as error:
            self._explain(error)

    def half_written(self, rel: str, age_s: float) -> dict[str, int]:
        """Bytes by name of what writers that were killed left below a folder, once it is older than any write takes."""
        if not self.is_folder:
            return {}  # an object storage keeps no half of a put
        halves = {}
        with self._errors_told(rel):
            for entry in local_files.files(self.path(rel)):
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.startswith(TEMPORARY) and time.time() - entry.stat().st_mtime > age_s:
                        halves[os.path.relpath(entry.path, self._root)] = entry.stat().st_size
        return halves

    def upload_dir(self, local: str | Path, rel: str) -> None:
        """Copy what lies in a local folder into a folder of the store; nothing there is removed."""
        names = sorted(local_files.sizes(str(local)))
        try:
            if names:
                self.fs.put([str(Path(local, name)) for name in names], [self.path(rel, name) for name in names])
        except OSError as error:
            self._explain(error)

    def download_dir(self, rel: str, local: str | Path) -> None:
        """Copy a folder of the store into a local one. Raises FileNotFoundError if nothing is there."""
        names = self.find(rel)
        if not names:
            raise FileNotFoundError(f"{self.uri}: nothing in {rel}")
        self.download(names, rel, Path(local))

    def download(self, names: Sequence[str], rel: str, local: Path) -> None:
        """Copy some files of a folder of the store into a local one. Raises FileNotFoundError if one is missing."""
        inner = [name[len(rel) :].strip("/") for name in names]
        if strange := [name for name in inner if not local_files.is_inside(name)]:  # a bucket takes any name
            raise UserError(f"{self.uri}/{rel} holds {strange[0]!r}, which would be written elsewhere: remove it")
        targets = [local / name for name in inner]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        with self._errors_told(rel):
            self.fs.get([self.path(name) for name in names], [str(target) for target in targets])

    def _names(self, paths: Iterable[str]) -> Names:
        names = (path[len(self._root) :].strip("/") for path in paths)
        return sorted(name for name in names if not _is_temporary(name))

    def _read_if_there(self, name: str) -> bytes | None:
        with self._errors_told(name):
            try:
                return Path(self.path(name)).read_bytes()
            except FileNotFoundError:
                return None

    def _object_if_there(self, name: str) -> bytes | None:
        try:
            return self.read_bytes(name)
        except FileNotFoundError:
            return None

    # --- tables and datasets -------------------------------------------------------------------------------

    def table(self, name: str, where: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A table as a pandas DataFrame; see `longtake.tables.table.read`."""
        from longtake.tables import table as tables

        return tables.read(self, name, where=where, columns=columns)

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name; see `longtake.datasets.dataset.Dataset`."""
        from longtake.datasets.dataset import Dataset

        return Dataset(self, name)

    # --- preflight -----------------------------------------------------------------------------------------

    def require_exists(self) -> None:
        """Raise UserError if there is no such folder or bucket: what a verb that only reads asks first."""
        if self.is_folder:
            with self._errors_told(""):
                exists = local_files.is_there(self._root)
            if not exists:
                raise UserError(f"no store at {self.uri}: the folder does not exist; give --store or LONGTAKE_STORE")
            return
        with self._errors_told(""), self.fs.at_once():
            # Not of the bucket itself: a key that is limited to the prefix may ask no more than that.
            bucket, _, prefix = self._root.partition("/")
            self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", MaxKeys=1)

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
        if not self.is_folder and isinstance(error, FileNotFoundError):
            raise UserError(f"store {self.uri}: no such bucket; make it first or mend the name") from error
        if type(error).__name__ in ("NoCredentialsError", "InvalidRegionError"):
            raise UserError(f"store {self.uri} cannot be reached: {error}") from error
        if (problem := local_files.not_written(error, self.uri)) is error:
            raise error
        raise problem from error


def _is_pattern(path: str) -> bool:
    """Whether fsspec would expand a path."""
    return any(sign in path for sign in "*?[")


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(TEMPORARY)


def _standing(path: Path) -> Path:
    """The nearest folder on the way to a path that exists already."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
