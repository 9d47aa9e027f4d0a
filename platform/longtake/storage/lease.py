"""Who may write: a lease per run and per sweep, in the store. It trusts no clock but the reader's own.

    runs/ID/lease/00000003.json      its third holder: host, process, since when, and a beat that counts while it lives
    sweeps/ID/lease/00000001.json

The highest number holds; the next one is made by whoever takes over, in one step that only one can do (a link in a
folder, a conditional put in an object storage). So the number is a fencing token: a holder that was paused and taken
over finds a higher one before it writes anything that lasts, and stops.

A holder lives while its beat changes; whoever wants its place watches that over its own monotonic clock. A process of
this very kernel that is gone need not be watched.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from longtake.errors import UserError
from longtake.storage.create import create

if TYPE_CHECKING:
    from longtake.storage.store import Store

BEAT_S = 5.0
SILENCE_S = 30.0
"""A holder whose beat has not changed for so long is taken over."""
LOOK_S = 0.5
SETTLE_S = 1.0
_NUMBER = re.compile("[0-9]{8,}")
logger = logging.getLogger(__name__)
_live: set[str] = set()
"""Secrets of the leases that this process holds."""


class Held(UserError):
    """Somebody else holds the lease, and lives."""


class Lost(UserError):
    """The lease that was held has been taken over."""


@dataclass(frozen=True)
class Token:
    """What a holder shows before it writes; travels to its workers."""

    folder: str
    what: str
    number: int
    secret: str

    def require(self, store: Store) -> None:
        """Raise Lost if this is no longer the highest number."""
        seen = _newest(store, self.folder)
        if seen is None or (seen.number, seen.holder.secret) != (self.number, self.secret):
            by = "is gone" if seen is None else f"was taken over by {seen.holder}"
            raise Lost(f"{self.what}: its lease {by}, while this one was silent: it stops here and writes nothing more")


@dataclass(frozen=True)
class Holder:
    """What a lease's file says. `within` and `rank`: folder and number of the lease under which it was taken."""

    secret: str = ""
    host: str = "?"
    pid: int = 0
    kernel: str = ""
    began: str = ""
    since: str = "?"
    beat: int = 0
    released: bool = False
    within: str = ""
    rank: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since} by its clock)"

    @staticmethod
    def here(within: Token | None) -> Holder:
        """This process, from now on."""
        return Holder(
            secret=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            kernel=_kernel(),
            began=_began(os.getpid()),
            since=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            within=within.folder if within else "",
            rank=within.number if within else 0,
        )

    @property
    def is_gone(self) -> bool:
        """Whether the holder has left its place, or was a process of this kernel that is no more."""
        if self.released or self.kernel == "" or self.kernel != _kernel():
            return self.released
        return _began(self.pid) != self.began or (self.pid == os.getpid() and not self.is_here)

    @property
    def is_here(self) -> bool:
        """Whether it is this very process."""
        return self.pid == os.getpid() and self.secret in _live

    def yields_to(self, within: Token | None) -> bool:
        """Whether both were taken under the same lease: its holder knows that only the later one is to run."""
        return within is not None and self.within == within.folder and self.rank <= within.number


@dataclass(frozen=True)
class _Seen:
    number: int
    raw: bytes
    holder: Holder


class Lease:
    """A lease that is held, as a context manager: leaving it frees the place."""

    def __init__(self, store: Store, token: Token, holder: Holder) -> None:
        self.token = token
        self.lost: Lost | None = None
        self._store, self._holder = store, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"lease of {token.what}", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise Lost if it was taken over; asks the store."""
        self.token.require(self._store)

    def raise_if_lost(self) -> None:
        """Raise Lost if the last beat found that it was taken over; costs nothing."""
        if self.lost is not None:
            raise self.lost

    def release(self) -> None:
        """Free the place for the next one; a second call changes nothing."""
        if self._ended.is_set() or self._holder.pid != os.getpid():  # a fork holds nothing
            return
        self._ended.set()
        self._thread.join()
        # Where the store is away the holder's end frees it all the same, only later.
        with contextlib.suppress(OSError, UserError):
            self.require()
            if not _remove(self._store, self.token):
                self._write(replace(self._holder, released=True))
        _live.discard(self.token.secret)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _work(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.require()
                self._write(replace(self._holder, beat=self._holder.beat + 1))
            except Lost as lost:
                self.lost = lost
                return
            except (OSError, UserError):  # a store that is away for a moment: the next beat tries again
                continue

    def _write(self, holder: Holder) -> None:
        self._holder = holder
        self._store.write_bytes(_name(self.token.folder, self.token.number), _bytes(holder))


def of_run(store: Store, run: str, within: Token | None = None) -> Lease:
    """The lease of a run; see `take`."""
    return take(store, f"runs/{run}/lease", f"run {run}", within)


def of_sweep(store: Store, sweep: str) -> Lease:
    """The lease of a sweep; see `take`."""
    return take(store, f"sweeps/{sweep}/lease", f"sweep {sweep}")


def take(store: Store, folder: str, what: str, within: Token | None = None) -> Lease:
    """Take the lease of a folder; at once if nobody holds it, else after its holder was silent for SILENCE_S.

    Args:
        what: named in messages.
        within: a lease held above this one, whose holder sees to it that only the latest taker under it goes on.

    Raises:
        Held: its holder lives.
    """
    watch = _Watch(what)
    while True:
        seen = _newest(store, folder)
        if seen is None or seen.holder.is_gone or seen.holder.yields_to(within) or watch.finds_silent(seen):
            lease = _try(store, folder, what, seen.number + 1 if seen else 1, Holder.here(within))
            if lease is not None:
                return lease
        elif seen.holder.is_here or watch.has_changed:
            raise _held(what, seen.holder)
        else:
            time.sleep(min(LOOK_S, BEAT_S / 2))


class _Watch:
    """How long a holder's beat has stood still, by this process's clock and only while this process looked."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._first: _Seen | None = None
        self._last, self._watched, self._told = 0.0, 0.0, False
        self.has_changed = False

    def finds_silent(self, seen: _Seen) -> bool:
        """Look once more; True when the same beat has been seen for SILENCE_S."""
        now = time.monotonic()
        if self._first is None or seen.number != self._first.number:
            self._first, self._watched, self._last = seen, 0.0, now
        # Time in which this process, or the storage, stood still says nothing about the holder.
        self._watched += min(now - self._last, 2 * LOOK_S)
        self._last = now
        self.has_changed = seen.raw != self._first.raw
        if self._watched > 2 * BEAT_S and not self._told and not self.has_changed:
            self._told = True
            logger.warning("%s: held by %s, silent; watching it for %g s", self._what, seen.holder, SILENCE_S)
        return self._watched > SILENCE_S and not self.has_changed


def _held(what: str, holder: Holder) -> Held:
    if holder.is_here:
        return Held(f"{what} is held by this very process, {holder}: end what holds it here first")
    return Held(
        f"{what} is held by {holder}, and that one lives: end it there (kill {holder.pid}, or `longtake stop` for a "
        "job of a cluster) or let it end, then try again"
    )


def _try(store: Store, folder: str, what: str, number: int, holder: Holder) -> Lease | None:
    """Be the first to make the next number; None if another was."""
    _live.add(holder.secret)  # before anybody can read it: another thread would take it for one that is gone
    try:
        created = _create(store, _name(folder, number), holder)
    except BaseException:
        _live.discard(holder.secret)
        raise
    if not created:
        _live.discard(holder.secret)
        return None
    store.remove([name for other, name in _of_leases(store, folder).items() if other < number])
    return Lease(store, Token(folder, what, number, holder.secret), holder)


def _create(store: Store, rel: str, holder: Holder) -> bool:
    """Make a file that is not there yet; whether it is ours."""
    raw = create(store, rel, _bytes(holder), settle_s=SETTLE_S)
    return raw is not None and _parse(raw).secret == holder.secret


def _remove(store: Store, token: Token) -> bool:
    """Remove the lease of what has come to nothing: a run that was refused leaves no folder behind."""
    above = token.folder.rpartition("/")[0]
    if store.list(above) != [token.folder]:
        return False
    store.remove([_name(token.folder, token.number)])
    if store.is_folder:
        with contextlib.suppress(OSError):  # somebody is about to take it
            for path in (token.folder, above, above.rpartition("/")[0]):
                Path(store.path(path)).rmdir()
    return True


def _newest(store: Store, folder: str) -> _Seen | None:
    """The highest number and what it says; None where nobody has ever held the lease."""
    while True:
        names = _of_leases(store, folder)
        if not names:
            return None
        number = max(names)
        try:
            raw = store.read_bytes(names[number])
        except FileNotFoundError:
            continue  # taken over and cleared up since it was listed
        return _Seen(number, raw, _parse(raw))


def _parse(raw: bytes) -> Holder:
    """A file that cannot be read is of a holder of whom nothing is known: it is watched."""
    try:
        return Holder(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        return Holder()


def _bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _name(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.json"


def _of_leases(store: Store, folder: str) -> dict[int, str]:
    """Number and name of each lease; what else lies there (a copy, something half written) is none."""
    listed = {name.rpartition("/")[2].removesuffix(".json"): name for name in store.list(folder)}
    return {
        int(number): name
        for number, name in listed.items()
        if name == f"{folder}/{number}.json" and _NUMBER.fullmatch(number)
    }


def _kernel() -> str:
    """This boot of this kernel and its space of process ids; empty where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none, or only what is left of it."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
