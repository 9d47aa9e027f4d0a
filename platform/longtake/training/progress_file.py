"""How far a run is, told by its first rank and read by whoever watches: one small file in the run's folder.

A file rather than an actor: it costs no process, works in any store and cluster, and outlives the driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from longtake.errors import Damaged, UserError
from longtake.storage import seals

if TYPE_CHECKING:
    from longtake.storage.store import Store

INTERVAL_S = 0.5
LOOK_S = 2.0


@dataclass(frozen=True)
class Progress:
    """`step` of `of` are done; `numbers` as the loop names them (loss, frames_per_s, data_wait, ...)."""

    step: int
    of: int
    numbers: dict[str, float] = field(default_factory=dict)
    session: str = ""  # one call of fit; another session's file is old news
    restarts: int = 0  # how often this session has replaced lost workers


def read(store: Store, run: str) -> Progress | None:
    """The last progress that was told; None if there is none yet, or it cannot be read: the next one comes at once."""
    try:
        return Progress(**seals.loaded(store.read_bytes(_path(run)), _path(run)))
    except (FileNotFoundError, Damaged, TypeError):
        return None


def ask_to_end(store: Store, run: str, session: str) -> None:
    """Ask the ranks of a session for a last checkpoint, at whatever step they are, and to end there."""
    store.write_bytes(_request(run), seals.dumped({"session": session}))


def forget_request(store: Store, run: str) -> None:
    """Remove what `ask_to_end` has written."""
    store.remove([_request(run)])


def write(store: Store, run: str, progress: Progress) -> None:
    """Tell it at once."""
    store.write_bytes(_path(run), seals.dumped(asdict(progress)))


class ProgressWriter:
    """Writes the latest progress from a thread of its own, so that a slow store does not slow the loop."""

    def __init__(self, store: Store, run: str, session: str = "") -> None:
        self._store, self._run, self._session = store, run, session
        self.is_asked_to_end = False
        self._looked = 0.0
        self._latest: Progress | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
        self._thread.start()

    def __call__(self, progress: Progress) -> None:
        """Take note; it is written within INTERVAL_S unless a newer one comes first."""
        self._latest = progress

    def close(self) -> None:
        """Write what is left and stop."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            self._flush()
            self._look()
        self._flush()

    def _look(self) -> None:
        """Whether the driver has asked for the end; a request of an object storage costs, so not each time."""
        if not self._session or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(OSError, UserError):  # not there, as a rule
            request = seals.loaded(self._store.read_bytes(_request(self._run)), _request(self._run))
            self.is_asked_to_end = request.get("session") == self._session

    def _flush(self) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            # A store that is away for a moment must not end a training that only wants to say how far it is.
            with contextlib.suppress(OSError, UserError):
                write(self._store, self._run, latest)


def run_watched(work: Callable[[], object], *watches: Callable[[], None]) -> None:
    """Run `work` in a thread and call the watches from this one until it ends, or one of them raises.

    In the main thread Ray Train would take over Ctrl-C and leave with exit code 0.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(INTERVAL_S)
        for watch in watches:
            watch()
    if failures:
        raise failures[0]


def watcher(store: Store, run: str, session: str, on_progress: Callable[[Progress], None] | None) -> Callable[[], None]:
    """A function that hands new progress of this session to the callback."""
    last: Progress | None = None

    def watch() -> None:
        nonlocal last
        latest = read(store, run) if on_progress is not None else None
        if on_progress is not None and latest is not None and latest.session == session and latest != last:
            last = latest
            on_progress(latest)

    return watch


def _path(run: str) -> str:
    return f"runs/{run}/progress.json"


def _request(run: str) -> str:
    return f"runs/{run}/end.json"
