"""Mutates one file at a time and says what its readers make of it.

Of a mutated file a reader may give what it gave before, or name the file, or go on with another whole one and say so.
Anything else is a fault: another result without a word (SILENT), a trace (TRACEBACK), a message that names no file
(UNNAMED), no end (HANG).
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import logging
import random
import shutil
import signal
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longtake.datasets.shard import CorruptData
from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from tests.corruption.base import Base
from tests.corruption.kinds import Kind, kinds

FAULTS = ("SILENT", "TRACEBACK", "UNNAMED", "HANG")
HANG_S = 300  # far longer than any reader takes on a busy machine
WAYS = ("bit", "zeros", "half", "bits", "other bytes", "empty", "deleted", "bit of the head", "longer", "shorter")


class Hang(BaseException):
    """A reader did not come to its end."""


def mutations(kind: str, data: bytes, count: int) -> Iterator[tuple[str, bytes | None]]:
    """So many of a file, the same at each call; with a few of them every kind begins with other ways."""
    draw, first = random.Random(kind), zlib.crc32(kind.encode())
    for number in range(count):
        way = WAYS[(first + number) % len(WAYS)]
        yield way, mutated(way, bytearray(data), draw)


def mutated(way: str, data: bytearray, draw: random.Random) -> bytes | None:
    """A file in one of the WAYS; one that was empty is made longer, or is deleted."""
    size = len(data)
    if way == "deleted":
        return None
    if way in ("empty", "half"):
        return bytes(data[: size // 2 if way == "half" else 0])
    if way == "longer" or not size:
        return bytes(data) + draw.randbytes(7)
    if way == "shorter":
        return bytes(data[:-1])
    at = draw.randrange(size)
    if way in ("zeros", "other bytes"):
        long = max(8, min(4096, size // 8)) if way == "zeros" else 16
        data[at : at + long] = bytes(len(data[at : at + long])) if way == "zeros" else draw.randbytes(long)
        return bytes(data[:size])
    for _ in range(8 if way == "bits" else 1):
        data[draw.randrange(min(size, 64) if way == "bit of the head" else size)] ^= 1 << draw.randrange(8)
    return bytes(data)


def outcome(kind: Kind, base: Base, store: Store, name: str, scratch: Path, truth: str | None) -> tuple[str, str]:
    """What became of reading, and what was said."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("longtake").addHandler(handler)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), ended_after(HANG_S):
            found = repr(kind.read(base, store, scratch))
    except (UserError, CorruptData) as error:
        return ("named" if _names(str(error) + said.getvalue(), name) else "UNNAMED"), str(error)
    except Hang:
        return "HANG", ""
    except Exception as error:
        return "TRACEBACK", f"{type(error).__name__}: {error} {traceback.format_tb(error.__traceback__)[-1]}"
    finally:
        logging.getLogger("longtake").removeHandler(handler)
    if truth is None:
        return "truth", found
    if found == truth or (kind.absent and found == "None"):
        return "same", said.getvalue()
    return ("went on, and said so" if _names(said.getvalue(), name) else "SILENT"), f"{found[:200]} {said.getvalue()}"


def _names(text: str, name: str) -> bool:
    """Whether a message names a file, or the folder of the checkpoint that it is of."""
    return name in text or name.rpartition("/")[0] in text or Path(name).name in text


@contextlib.contextmanager
def ended_after(seconds: int) -> Iterator[None]:
    """Raise Hang where the block takes longer."""

    def hang(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Copy:
    """A copy of the base store to mutate, in a folder or in a bucket."""

    def __init__(self, base: Base, uri: str) -> None:
        self._base, self.store = base, open_store(uri)
        self._there: dict[str, bytes] = {}
        self._whole = {
            path.relative_to(base.store).as_posix(): path.read_bytes()
            for path in base.store.rglob("*")
            if path.is_file()
        }

    def renew(self) -> None:
        """Make the copy what the base is."""
        there = set(self.store.find())
        for name in there - self._whole.keys():
            self.store.remove([name])
        for name, data in self._whole.items():
            if name not in there or self.store.read_bytes(name) != data:
                _put(self.store, name, data)

    def one(self, pattern: str) -> str:
        """The first file of a pattern."""
        return min(name for name in self._whole if fnmatch.fnmatchcase(name, pattern))

    def bytes(self, name: str) -> bytes:
        """A file as it was."""
        return self._whole[name]


def _put(store: Store, name: str, data: bytes | None) -> None:
    """Write a file as rot does, past the store's own way of writing; None deletes it."""
    if data is None:
        store.remove([name])
    elif store.is_folder:
        path = Path(store.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    else:
        store.write_bytes(name, data)


def try_kind(kind: Kind, base: Base, copy: Copy, count: int) -> Iterator[tuple[str, str, str]]:
    """(way of mutation, outcome, what was said) of so many mutations of a kind."""
    truth: str | None = None
    name = kind.file if kind.beside else copy.one(kind.file)
    data = (base.folder / name).read_bytes() if kind.beside else copy.bytes(name)
    for way, changed in [("none", data), *mutations(kind.name, data, count)]:
        with tempfile.TemporaryDirectory() as scratch:
            if kind.beside:
                shutil.copytree(base.folder / "exported", Path(scratch) / "exported")
                target = Path(scratch) / name
                target.unlink() if changed is None else target.write_bytes(changed)
            else:
                copy.renew()
                _put(copy.store, name, changed)
            result, said = outcome(kind, base, copy.store, name, Path(scratch), truth)
        if truth is None:
            assert result == "truth", f"{kind.name}: whole files are not read: {result}: {said}"
            truth = said
        else:
            yield way, result, said


def run(base: Base, uri: str, count: int, only: str = "") -> Counter[str]:
    """The table of all kinds whose name holds `only`; faults are printed one by one."""
    copy, total = Copy(base, uri), Counter[str]()
    for kind in kinds(base):
        if only not in kind.name or (kind.beside and not copy.store.is_folder):
            continue
        found: Counter[str] = Counter()
        for way, result, said in try_kind(kind, base, copy, count):
            found[result] += 1
            if result in FAULTS:
                print(f"  {kind.name}, {way}: {result}: {said[:300]}", flush=True)
        print(f"{kind.name:36} " + ", ".join(f"{n} {result}" for result, n in found.items()), flush=True)
        total += found
    return total
