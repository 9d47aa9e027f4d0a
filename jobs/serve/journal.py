"""Sessions as they lie in the store: a world, and the orders that were done since. Each file is written once.

    sessions/ID/00000032.world    after 32 orders: what `World.save` writes
    sessions/ID/00000033.json     the order that came next

An order is answered when its file is there, and one number can be written by one writer alone. So whichever replica
reads a session finds all that was answered, and makes the same bits of it; who is late finds its number taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from longtake.errors import UserError
from longtake.storage.create import create
from longtake.storage.store import Store

FOLDER = "sessions"
ID = re.compile("[0-9a-f]{24}")
_FILE = re.compile(r"([0-9]{8,})\.(world|json)")


class UnknownSession(UserError):
    """There is no such session, or it was ended."""


@dataclass(frozen=True)
class Kept:
    """A session in the store: the world after `n` orders, and those done since."""

    n: int
    world: bytes
    orders: list[bytes]


class Journal:
    """The sessions of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def begin(self, session: str, world: bytes, n: int = 0) -> None:
        """Keep a world after `n` orders, and give up earlier ones. Orders stay: their numbers are taken for good."""
        self.store.write_bytes(_name(session, n, "world"), world)
        if n:
            files = self._files(session)
            self.store.remove([name for (at, kind), name in files.items() if at < n and kind == "world"])

    def append(self, session: str, n: int, order: bytes) -> bool:
        """Keep the order that led to `n`; False where another one did."""
        return create(self.store, _name(session, n, "json"), order) == order

    def read(self, session: str) -> Kept:
        """What is kept. Raises UnknownSession."""
        if ID.fullmatch(session):
            files = self._files(session)
            while worlds := [at for at, kind in files if kind == "world"]:
                first = number = max(worlds)
                names = [files[first, "world"]]
                while name := files.get((number := number + 1, "json")):
                    names.append(name)
                contents = [data for data in self.store.read_many(names).values() if data is not None]
                if len(contents) == len(names):
                    return Kept(first, contents[0], contents[1:])
                files = self._files(session)  # another replica has kept a newer world meanwhile
        raise UnknownSession(f"session {session!r}: there is none, or it was ended; POST /sessions begins one")

    def end(self, session: str) -> None:
        """Remove a session; one that is not there is no error."""
        if ID.fullmatch(session):
            self.store.remove_folder(f"{FOLDER}/{session}")

    def count(self) -> int:
        """Sessions that are not ended."""
        return len(self.store.list(FOLDER))

    def _files(self, session: str) -> dict[tuple[int, str], str]:
        matches = {name: _FILE.fullmatch(name.rpartition("/")[2]) for name in self.store.list(f"{FOLDER}/{session}")}
        return {(int(match[1]), match[2]): name for name, match in matches.items() if match}


def _name(session: str, n: int, kind: str) -> str:
    return f"{FOLDER}/{session}/{n:08d}.{kind}"
