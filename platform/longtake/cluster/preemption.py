"""SIGTERM: somebody takes the machine back (a spot notice, a scheduler, a container's end) and leaves a few seconds.

A verb ends in order, with exit code 143. Within `deferred()` a training goes on instead until it has saved a
checkpoint, for as long as LONGTAKE_GRACE_S says; a second SIGTERM ends it at once. `longtake stop` sends SIGTERM to a
job of a cluster, which is meant as Ctrl-C is: nothing is waited for there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from longtake.errors import PREEMPTED, UserError

GRACE_S = 20.0
"""Of the 30 s that containers are commonly given; the two minutes of a spot notice are more."""

_told = threading.Event()
_deferring = 0


def handle() -> None:
    """Let SIGTERM mean this to the process. For its main thread; any other has no say in signals."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _handle)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What the process does on SIGTERM stays what it is, though Ray, which starts in the block, sets its own.

    Ray's native handler prints a stack and aborts.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Whoever works in here looks at `is_told` and ends by itself soon after that is true."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
        if _told.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0)


def is_told() -> bool:
    """Whether a SIGTERM has come."""
    return _told.is_set()


def grace_s() -> float:
    """How long a checkpoint may take after a SIGTERM. Raises UserError for what is no number of seconds."""
    given = os.environ.get("LONGTAKE_GRACE_S") or str(GRACE_S)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise UserError(f"LONGTAKE_GRACE_S: {given!r} is no number of seconds")
    return seconds


def _handle(number: int, frame: Any) -> None:
    of_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if _deferring and not _told.is_set() and not of_a_job and (seconds := grace_s()):
        _told.set()
        signal.signal(signal.SIGALRM, _handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return
    _told.set()
    raise SystemExit(PREEMPTED)
