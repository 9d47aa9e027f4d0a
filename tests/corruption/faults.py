"""Fails one call of the operating system at a time below a store, while a verb reads and writes there.

A verb may give what it gives without the fault, or end with an error that names where it was; nothing that was there
before may be gone or damaged afterwards.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from longtake.datasets.shard import CorruptData
from longtake.errors import UserError
from longtake.storage.store import Store
from longtake.tables.compaction import compact
from longtake.training import checkpoints
from tests.corruption import kinds
from tests.corruption.base import Base
from tests.corruption.table import FAULTS, Copy, ended_after

READING = (errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE)
WRITING = (errno.ENOSPC, *READING)
CALLS: dict[Any, Sequence[str]] = {
    builtins: ("open",),
    io: ("open",),
    os: ("open", "scandir", "stat", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "fsync", "listdir"),
}
"""What is made to fail; with what each of them asks: a path, or a file that is open."""

VERBS: dict[str, kinds.Read] = {
    "collect": kinds.collected,
    "ingest": kinds.ingested,
    "encode": kinds.encoded_again,
    "evaluate": kinds.evaluated,
    "export": kinds.exported,
    "train --resume --fork": kinds.forked,
    "train --resume": kinds.resumed,
    "train --resume of a finished run": kinds.resumed_finished,
    "results": kinds.summary,
    "runs": kinds.table("runs"),
    "report": lambda base, store, _: kinds.found_protocol(base, store),
    "sweep --resume": kinds.swept,
    "verify": kinds.episodes,
    "compact": lambda base, store, _: [compact(store, name).rows for name in ("scores", "steps", "runs", "trials")],
}


@dataclass
class Fault:
    """The `at`th call below a folder fails; -1 for none. `calls` counts, `hit` says which one failed."""

    folder: str
    at: int = -1
    code: int = 0
    calls: int = 0
    hit: str = ""
    _paths: dict[int, str] = field(default_factory=dict)

    def check(self, name: str, target: Any) -> None:
        """Count a call, and raise if it is the one that fails."""
        path = self._paths.get(target, "") if isinstance(target, int) else str(target)
        if not path.startswith(self.folder):
            return
        self.calls += 1
        if self.calls - 1 == self.at:
            self.hit = f"{name} {path.removeprefix(self.folder)}"
            raise OSError(self.code, os.strerror(self.code), path)

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        """Every call in the block is looked at."""
        before = [(module, name, getattr(module, name)) for module, names in CALLS.items() for name in names]
        try:
            for module, name, real in before:
                setattr(module, name, self._failing(name, real))
            yield
        finally:
            for module, name, real in before:
                setattr(module, name, real)

    def _failing(self, name: str, real: Any) -> Any:
        def call(target: Any = ".", *more: Any, **named: Any) -> Any:
            self.check(name, target)
            found = real(target, *more, **named)
            if name == "open" and isinstance(found, int) and not isinstance(target, int):
                self._paths[found] = str(target)
            return found

        return call


def outcome(verb: str, base: Base, copy: Copy, fault: Fault, scratch: Path, truth: str | None) -> tuple[str, str]:
    """What became of a verb under a fault, and what was said."""
    before = None if truth is None else _kept(base, copy.store)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), ended_after(300), fault.injected():
            found = repr(VERBS[verb](base, copy.store, scratch))
        result = "truth" if truth is None else "same" if found == truth else "SILENT"
    except (UserError, CorruptData) as error:
        found = str(error)
        result = "named" if fault.folder in found or Path(fault.hit).name in found else "UNNAMED"
    except OSError as error:  # `longtake.jobs.exit_codes` makes a line of one that has a name
        result, found = ("named" if error.filename else "TRACEBACK"), str(error)
    except Exception as error:
        result, found = "TRACEBACK", f"{type(error).__name__}: {error}"
    if before is not None and (lost := _lost(before, _kept(base, copy.store))):
        result, found = "LOST", lost
    return result, found


def _kept(base: Base, store: Store) -> dict[str, set[Any]]:
    """Whole checkpoints of each run, and the keys of the rows of each table."""
    found: dict[str, set[Any]] = {}
    for run in (base.run, base.cut):
        whole = {
            step for step in checkpoints.complete(store, run) if not checkpoints.damage(store, run, step, hashed=True)
        }
        found[f"checkpoints of {run}"] = whole
    for table, keys in (("steps", ["run", "step"]), ("scores", ["system", "protocol", "episode", "frame", "metric"])):
        found[table] = set(pd.DataFrame(store.table(table)[keys]).itertuples(index=False, name=None))
    return found


def _lost(before: dict[str, set[Any]], after: dict[str, set[Any]]) -> str:
    gone = {name: sorted(there - after[name])[:3] for name, there in before.items() if there - after[name]}
    return f"gone: {gone}" if gone else ""


def run(base: Base, copy: Copy, verb: str, scratch: Path, stride: int) -> Counter[str]:
    """Of a verb every `stride`th call, each with another error in turn; faults are printed."""
    copy.renew()
    fault = Fault(copy.store.uri)
    result, truth = outcome(verb, base, copy, fault, scratch / "truth", None)
    assert result == "truth", f"{verb}: {truth}"
    total: Counter[str] = Counter()
    for at in range(0, fault.calls, stride):
        copy.renew()
        this = Fault(copy.store.uri, at, WRITING[at // stride % len(WRITING)])
        place = scratch / f"{at}"
        place.mkdir()
        result, said = outcome(verb, base, copy, this, place, truth)
        total[result] += 1
        if result in (*FAULTS, "LOST"):
            print(f"  {verb}: {errno.errorcode[this.code]} at {this.hit}: {result}: {said[:300]}", flush=True)
    print(f"{verb:36} {fault.calls} calls: " + ", ".join(f"{n} {what}" for what, n in total.items()), flush=True)
    return total
