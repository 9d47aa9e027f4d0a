"""The record of a run in the table `runs`: what it is, where it came from, whether its driver still lives.

Each run writes one part of its own and rewrites it with every event (start, heartbeat, end). A driver that is
killed cannot write its end: its silence makes the run read as `lost`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from longtake.config import config_hash, dump
from longtake.errors import PREEMPTED, Preempted, UserError
from longtake.provenance import provenance
from longtake.tables import merging
from longtake.tables import table as tables

if TYPE_CHECKING:
    from pydantic import BaseModel

    from longtake.storage.lease import Lease
    from longtake.storage.store import Store

HEARTBEAT_S = 15.0
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LABEL = re.compile(r"(class_name|actor_id|pid|name|namespace|ip): ")
_RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt|Killed)\b.*: ")
Status = Literal["done", "failed", "stopped", "preempted"]


class RunRecord:
    """One session of a run, as a context manager: leaving it writes how the run ended.

    with RunRecord.start(store, run, kind="train", name="maze", config=config, seed=0):
        ...
    """

    def __init__(
        self, store: Store, row: dict[str, Any], heartbeat_s: float = HEARTBEAT_S, lease: Lease | None = None
    ) -> None:
        self._store, self._lease = store, lease
        self._row = row
        self._heartbeat_s = heartbeat_s
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {row['run']}", daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        store: Store,
        run: str,
        *,
        kind: str,
        name: str,
        config: BaseModel,
        dataset: str = "",
        seed: int | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        lease: Lease | None = None,
        **more: Any,
    ) -> Self:
        """Write that the run goes on now. A run started again keeps its first start and counts its sessions.

        Args:
            kind: the verb: train, evaluate, collect, ...
            dataset: fingerprint of the dataset it reads.
            lease: of a run that others could go on with too: who has lost it writes no event.
            more: further columns.
        """
        earlier = tables.read(store, "runs", part=run).to_dict("records")
        row: dict[str, Any] = {
            "run": run,
            "kind": kind,
            "name": name,
            "status": "running",
            "reason": "",
            "started": earlier[0]["started"].to_pydatetime() if earlier else _now(),
            "ended": None,
            "sessions": 1 + (int(earlier[0]["sessions"]) if earlier else 0),
            "seed": seed,
            "dataset": dataset,
            "config_hash": config_hash(config),
            "config": dump(config),
            "pid": os.getpid(),
            **provenance(),
            **more,
        }
        return cls(store, row, heartbeat_s, lease)

    @property
    def run(self) -> str:
        """The run's id."""
        return str(self._row["run"])

    def note(self, **columns: Any) -> None:
        """Further columns, written with the next event."""
        self._row |= columns

    def finish(self, status: Status = "done", reason: str = "") -> None:
        """Write how the run ended; a second call changes nothing."""
        if self._ended.is_set():
            return
        # The heartbeat stops first: no `running` may be written after the end.
        self._ended.set()
        self._thread.join()
        self._row |= {"status": status, "reason": reason, "ended": _now()}
        self._write()
        merging.look(self._store, "runs")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, Preempted) or (isinstance(error, SystemExit) and _is_preempted(error)):
            self.finish("preempted", "SIGTERM")
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self.finish("stopped", type(error).__name__)
        else:
            # Where the store is what failed, its error must not hide this one; the run will read as lost.
            with contextlib.suppress(OSError, UserError):
                self.finish("failed", cause(error))

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            # A store that is away for a moment must not end the run; the next beat tries again.
            with contextlib.suppress(OSError, UserError):
                self._write()

    def _write(self) -> None:
        if self._lease is not None:
            self._lease.require()
        tables.append(self._store, "runs", [self._row], part=self.run)


def cause(error: BaseException) -> str:
    """Why something failed, on one line: what was raised on a worker, not that Ray lost an actor; without colours."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    lines = [line.strip() for line in COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if type(error).__module__.startswith("ray."):
        lines = [line for line in lines if not _LABEL.match(line)]
        raised = [line for line in lines if _RAISED.match(line)]
        if raised or lines[1:]:
            return raised[-1] if raised else lines[1]  # the first line only says that an actor died
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def _is_preempted(error: SystemExit) -> bool:
    """Whether a SIGTERM has ended the process, which no `longtake stop` has sent to a job of a cluster."""
    return error.code == PREEMPTED and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
