"""Ending a process that leads a session of its own, and all that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

PATIENCE_S = 4.0


def end_session(leader: int) -> None:
    """End a process that leads a session, and all that it started: the group first, then whoever is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while left := members(leader):
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def members(session: int) -> list[int]:
    """Living processes of a session."""
    living = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, owner = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                living.append(int(folder.name))
    return living
