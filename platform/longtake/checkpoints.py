"""A run's checkpoints in the store: written by every rank, there at once or not at all.

    runs/ID/checkpoints/step-000200/...            what the ranks wrote
    runs/ID/checkpoints/step-000200/complete.json  written last: step, metrics, world, files with their sizes

A checkpoint without the marker, or with a file of another size than the marker says, does not exist for a
reader: a kill half-way leaves nothing that could be picked. So the marker is also the first to be deleted.
Nothing here depends on Ray, so evaluation and export read checkpoints without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.store import Store

MARKER = "complete.json"
logger = logging.getLogger(__name__)


def folder(run: str, step: int) -> str:
    """Where in the store the checkpoint of a step lies; sorts by step."""
    return f"runs/{run}/checkpoints/step-{step:06d}"


def complete(store: Store, run: str) -> list[int]:
    """Steps that have a finished checkpoint, ascending; one listing, files are not looked at."""
    return sorted(step for step, sealed in _steps(store, run).items() if sealed)


def newest(store: Store, run: str) -> int | None:
    """The last step whose checkpoint is finished and whole; damaged ones are passed over."""
    for step in reversed(complete(store, run)):
        problems = damage(store, run, step)
        if not problems:
            return step
        for line in problems:
            logger.warning("damaged checkpoint passed over: %s", line)
    return None


def manifest(store: Store, run: str, step: int) -> dict[str, Any]:
    """What `complete.json` says: step, world, metrics, time, files {name: bytes}.

    Raises FileNotFoundError if the checkpoint is not finished.
    """
    read: dict[str, Any] = json.loads(store.read_bytes(f"{folder(run, step)}/{MARKER}"))
    return read


def damage(store: Store, run: str, step: int) -> list[str]:
    """One line per file that is missing or has another size than when it was written."""
    there = _sizes(store, run, step)
    return [
        f"{folder(run, step)}/{name}: {there.get(name, 0)} bytes, {size} were written"
        for name, size in manifest(store, run, step)["files"].items()
        if there.get(name) != size
    ]


@contextlib.contextmanager
def opened(store: Store, run: str, step: int) -> Iterator[Path]:
    """A checkpoint as a folder to read: the store's own one, or a download that goes away with the block."""
    own = _local_folder(store, run, step)
    if own is not None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="longtake-") as temporary:
        store.download_dir(folder(run, step), Path(temporary))
        yield Path(temporary)


@contextlib.contextmanager
def writing(store: Store, run: str, step: int) -> Iterator[Path]:
    """A local folder for one rank's files; they are in the store when the block ends, for `seal` to show."""
    own = _local_folder(store, run, step)
    if own is not None:
        own.mkdir(parents=True, exist_ok=True)
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="longtake-") as temporary:
        yield Path(temporary)
        store.upload_dir(Path(temporary), folder(run, step))


def seal(store: Store, run: str, step: int, world: int, metrics: dict[str, float]) -> None:
    """Make a checkpoint visible. One rank calls it, after all ranks have left `writing`."""
    marker = {
        "step": step,
        "world": world,
        "metrics": metrics,
        "time": time.time(),
        "files": _sizes(store, run, step),
    }
    store.write_bytes(f"{folder(run, step)}/{MARKER}", json.dumps(marker, indent=1).encode())


def copy(store: Store, run: str, step: int, to: str) -> None:
    """Give another run a finished checkpoint of this one."""
    told = manifest(store, run, step)
    with opened(store, run, step) as source, writing(store, to, step) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER))
    seal(store, to, step, told["world"], told["metrics"])


def best(store: Store, run: str, metric: str) -> int | None:
    """The step whose finished checkpoint tells the lowest value of a metric; None where none tells it."""
    told = {step: manifest(store, run, step)["metrics"].get(metric, math.nan) for step in complete(store, run)}
    there = {step: value for step, value in told.items() if math.isfinite(value)}
    return min(there, key=lambda step: there[step]) if there else None


def prune(store: Store, run: str, keep: int, metric: str | None = None) -> None:
    """Delete all finished checkpoints but the newest `keep`, and the best by a metric where one is named."""
    kept = best(store, run, metric) if metric is not None else None
    for step in complete(store, run)[:-keep]:
        if step != kept:
            _delete(store, run, step)


def discard_unfinished(store: Store, run: str, after: int) -> None:
    """Delete what interrupted attempts left: unfinished checkpoints, and damaged ones later than `after`."""
    for step, sealed in _steps(store, run).items():
        if not sealed or step > after:
            _delete(store, run, step)


def _steps(store: Store, run: str) -> dict[int, bool]:
    """Step of each checkpoint folder, and whether it bears the marker."""
    found: dict[int, bool] = {}
    for path in _find(store, store.path("runs", run, "checkpoints")):
        name, *inner = path.split("/")
        number = name.removeprefix("step-")
        if number != name and number.isdigit():
            found[int(number)] = found.get(int(number), False) or inner == [MARKER]
    return found


def _sizes(store: Store, run: str, step: int) -> dict[str, int]:
    """Bytes of each file of a checkpoint, the marker left out."""
    found = _find(store, store.path(folder(run, step)))
    return {name: size for name, size in sorted(found.items()) if name != MARKER}


def _find(store: Store, root: str) -> dict[str, int]:
    """Files under a path of the store's filesystem, named relative to it, with their bytes."""
    try:
        found = store.fs.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {path[len(root) :].strip("/"): int(info["size"]) for path, info in found.items()}


def _delete(store: Store, run: str, step: int) -> None:
    root = store.path(folder(run, step))
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm_file(f"{root}/{MARKER}")
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm(root, recursive=True)


def _local_folder(store: Store, run: str, step: int) -> Path | None:
    return Path(store.path(folder(run, step))) if store.is_folder else None
