"""A run's checkpoints in the store: written by every rank, there at once or not at all, and read as they were written.

    runs/ID/checkpoints/step-000200/...            what the ranks wrote
    runs/ID/checkpoints/step-000200/complete.json  written last: run, step, metrics, world, files with sizes and SHA-256
    runs/ID/sealed.json                            the newest step that was ever sealed

A checkpoint without the marker, or with other files than the marker says, does not exist for a reader: a kill half-way
leaves nothing that could be picked. So the marker is also the first to be deleted, and `prune` alone deletes one.
What is read is compared with its SHA-256 first. Nothing here depends on Ray, so evaluation and export read checkpoints
without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import Damaged, UserError
from longtake.storage import local_files, scratch, seals
from longtake.storage.store import TEMPORARY
from longtake.training.sealed_record import last_sealed, last_sealed_or_none, note_sealed

if TYPE_CHECKING:
    from longtake.storage.store import Store

MARKER = "complete.json"
REPORT = "written-"
"""How the files begin in which ranks tell `seal` what they wrote."""

WRITERS_S, WRITERS_POLL_S = 600.0, 0.1
"""How long the first rank waits for the files of the others, and how often it looks."""

_TOLD = {"run": str, "step": int, "world": int, "metrics": dict}
"""What a marker says beside the files, and as what."""

PIECE = 16 * 2**20  # bytes that are hashed at a time where a file is no local one
_STEP = re.compile(r"step-([0-9]{6}|[1-9][0-9]{6,})")  # as `folder` writes it
logger = logging.getLogger(__name__)


def folder(run: str, step: int) -> str:
    """Where in the store the checkpoint of a step lies; sorts by step."""
    return f"runs/{run}/checkpoints/step-{step:06d}"


def complete(store: Store, run: str) -> list[int]:
    """Steps that have a finished checkpoint, ascending; one listing, files are not looked at."""
    return sorted(step for step, sealed in _steps(store, run).items() if sealed)


def unfinished(store: Store, run: str) -> list[int]:
    """Steps whose checkpoint was never finished, ascending: of a run that is not going on they are of no use."""
    return sorted(step for step, sealed in _steps(store, run).items() if not sealed)


def newest(store: Store, run: str, *, but: Collection[int] = (), hashed: bool = False) -> int | None:
    """The last step whose checkpoint is finished and whole; damaged ones, and those of `but`, are passed over.

    Whole: names and sizes are those written; with `hashed` every byte is read and compared too.
    """
    steps = complete(store, run)
    last = last_sealed_or_none(store, run) if steps else None
    if last is not None and last > steps[-1]:
        gone = f"{folder(run, last)}/{MARKER}: is gone, that step was saved once"
        logger.warning("damaged checkpoint passed over: %s", gone)
    for step in reversed(steps):
        if step in but:
            continue
        try:
            problems = damage(store, run, step, hashed=hashed)
        except FileNotFoundError:
            continue  # pruned meanwhile
        if not problems:
            return step
        for line in problems:
            logger.warning("damaged checkpoint passed over: %s", line)
    return None


def require_newest(store: Store, run: str) -> int:
    """The last step whose checkpoint is finished and whole. Raises UserError, which names damage, if none is."""
    step = newest(store, run)
    if step is None:
        damaged = [line for step in complete(store, run) for line in damage(store, run, step)]
        raise UserError(*damaged, f"run {run} has no {'whole checkpoint' if damaged else 'checkpoint yet'}")
    return step


def checkpoint_of(store: Store, run: str, step: int | None) -> int:
    """The step of a run's checkpoint: the one asked for, else the newest that is whole.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if step is None:
        return require_newest(store, run)
    steps = complete(store, run)
    if step not in steps:
        raise UserError(f"run {run} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}")
    if problems := damage(store, run, step):
        raise UserError(*(f"damaged checkpoint: {line}" for line in problems))
    return step


def manifest(store: Store, run: str, step: int) -> dict[str, Any]:
    """What `complete.json` says: run, step, world, metrics, time, files {name: bytes}, sha256 {name: hash}.

    Raises:
        FileNotFoundError: the checkpoint is not finished.
        Damaged: it is not what was written, or was written as another step or for another run.
        UserError: an earlier version wrote it.
    """
    where = f"{folder(run, step)}/{MARKER}"
    marker = seals.loaded(store.read_bytes(where), where)
    if "run" not in marker:
        raise UserError(
            f"{where}: of an earlier version of longtake, whose checkpoints do not say of which run they are; this "
            "version reads none such: train it again, or go on with the version that wrote it"
        )
    wrong = [name for name, kind in _TOLD.items() if not isinstance(marker.get(name), kind)]
    if wrong or not all(isinstance(value, int | float) for value in marker["metrics"].values()):
        raise Damaged(f"{where}: damaged, {', '.join(wrong) or 'metrics'} cannot be what was written")
    if (marker["run"], marker["step"]) != (run, step):
        raise Damaged(f"{where}: of step {marker['step']} of run {marker['run']}, it was moved here")
    return marker


def damage(store: Store, run: str, step: int, *, hashed: bool = False, parts: Sequence[str] = ()) -> list[str]:
    """One line per file that is missing, has another size than when it was written, or that nobody wrote.

    With `hashed` also per file with another SHA-256; of those named in `parts` (files and folders), where any are.
    """
    where = folder(run, step)
    try:
        written = _written(store, run, step)
    except Damaged as error:
        return list(error.lines)
    problems = seals.faults(where, _sizes(store, run, step), written)
    if hashed and not problems:
        chosen = {name: entry for name, entry in written.items() if _is_part(name, parts)}
        problems = [
            seals.rot(where, name)
            for name, entry in chosen.items()
            if _sha256(store, f"{where}/{name}", entry.bytes) != entry.sha256
        ]
    return problems


def require_whole(store: Store, run: str, step: int, parts: Sequence[str] = ()) -> None:
    """Raise Damaged, with the way out, unless every byte of a checkpoint, or of some parts, is as it was written."""
    _refuse(store, run, step, damage(store, run, step, hashed=True, parts=parts))


def read(store: Store, run: str, step: int, name: str) -> bytes:
    """One file of a checkpoint. Raises FileNotFoundError, and Damaged for other bytes than were written."""
    written = _written(store, run, step)
    if name not in written:
        raise FileNotFoundError(f"{folder(run, step)}/{name}")
    data = store.read_bytes(f"{folder(run, step)}/{name}")
    if hashlib.sha256(data).hexdigest() != written[name].sha256:
        _refuse(store, run, step, [seals.rot(folder(run, step), name)])
    return data


def step_in(opened: Path) -> int:
    """The step of a checkpoint that is open."""
    return int(json.loads((opened / MARKER).read_text())["step"])


def require_none(store: Store, run: str) -> None:
    """Raise UserError if a run that has no whole checkpoint once had one: beginning anew would bury what is lost."""
    where = f"runs/{run}/checkpoints"
    damaged = [line for step in complete(store, run) for line in damage(store, run, step, hashed=True)]
    once = last_sealed(store, run)
    if damaged or once is not None:
        had = f"its record says that step {once} was saved" if once is not None else "what there is is damaged"
        way = f"bring {where} back as it was, or begin a new run (without --resume)"
        raise UserError(*damaged, f"run {run}: {had}, and {where} holds no whole checkpoint: {way}")


@contextlib.contextmanager
def opened(store: Store, run: str, step: int, parts: Sequence[str] = ()) -> Iterator[Path]:
    """A checkpoint as a folder to read: the store's own one, or a download that goes away with the block.

    `parts` names the files and folders that will be read; without it, all will be.

    Raises:
        FileNotFoundError: it is not finished, or was pruned.
        Damaged: a file is another than was written; names it, and the way out.
        UserError: an earlier version wrote it.
    """
    own, where = _local_folder(store, run, step), folder(run, step)
    with contextlib.ExitStack() as stack:
        written = _written(store, run, step)
        sizes = _sizes(store, run, step)
        if own is None:
            own = stack.enter_context(_scratch(None))
            wanted = [name for name in (*written, MARKER) if name == MARKER or _is_part(name, parts)]
            store.download([f"{where}/{name}" for name in wanted if name == MARKER or name in sizes], where, own)
        problems = seals.faults(where, sizes, written)
        if not problems:
            chosen = ((name, entry) for name, entry in written.items() if _is_part(name, parts))
            problems = [seals.rot(where, name) for name, entry in chosen if seals.sha256(own / name) != entry.sha256]
        _refuse(store, run, step, problems)
        yield own


@contextlib.contextmanager
def writing(store: Store, run: str, step: int) -> Iterator[Path]:
    """A folder for one rank's files; when the block ends they are in the store, and `seal` is told of them."""
    own, where = _local_folder(store, run, step), folder(run, step)
    with _scratch(own) as part:
        yield part
        written = seals.entries(part)
        if own is None:
            store.upload_dir(part, where)
        else:
            local_files.move_in(part, own, written)
    store.write_bytes(f"{where}/{REPORT}{secrets.token_hex(8)}.json", seals.dumped(seals.told(written)))


@contextlib.contextmanager
def _scratch(beside: Path | None) -> Iterator[Path]:
    """A folder that goes away with the block; to move files to another one, within that one."""
    if beside is None:
        with scratch.folder() as temporary:
            yield temporary
        return
    beside.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=beside) as temporary:
            yield Path(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.rmdir()
        raise


def wait_for_writers(store: Store, run: str, step: int, writers: int) -> None:
    """Until so many ranks have told what they wrote of a checkpoint: without a collective call, which ranks need for
    their steps meanwhile.

    Raises:
        TimeoutError: some have not, for `WRITERS_S`: their processes are gone.
    """
    deadline = time.monotonic() + WRITERS_S
    while writers > 1 and len(store.starting(f"{folder(run, step)}/{REPORT}")) < writers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the checkpoint of step {step}: not all of {writers} ranks have written their part")
        time.sleep(WRITERS_POLL_S)


def seal(store: Store, run: str, step: int, world: int, metrics: dict[str, float], *, writers: int = 1) -> None:
    """Make a checkpoint visible: of what `writers` have written, the rest goes. One rank calls it, after all wrote.

    Raises:
        UserError: what they wrote is not there any more.
    """
    where = folder(run, step)
    reports = store.starting(f"{where}/{REPORT}")
    parts = [seals.entries_of(seals.loaded(store.read_bytes(name), name), name) for name in reports]
    written = {name: entry for part in parts for name, entry in part.items()}
    sizes = _sizes(store, run, step)
    missing = seals.faults(where, {name: size for name, size in sizes.items() if name in written}, written)
    if len(reports) != writers or missing:
        what = "; ".join(missing) or f"{len(reports)} of {writers} ranks' files are there"
        raise UserError(f"the checkpoint of step {step} is not what was written ({what}): does another run {run} too?")
    store.remove([*reports, *(f"{where}/{name}" for name in sizes if name not in written)])
    marker = {"run": run, "step": step, "world": world, "metrics": metrics, "time": time.time(), **seals.told(written)}
    store.write_bytes(f"{where}/{MARKER}", seals.dumped(marker))
    note_sealed(store, run, step)


def copy(store: Store, run: str, step: int, to: str) -> None:
    """Give another run a finished checkpoint of this one."""
    marker = manifest(store, run, step)
    with opened(store, run, step) as source, writing(store, to, step) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER, f"{REPORT}*"))
    seal(store, to, step, marker["world"], marker["metrics"])


def best(store: Store, run: str, metric: str) -> int | None:
    """The step whose finished checkpoint tells the lowest value of a metric; None where none tells it."""
    values: dict[int, float] = {}
    for step in complete(store, run):
        with contextlib.suppress(Damaged):  # it tells nothing
            values[step] = manifest(store, run, step)["metrics"].get(metric, math.nan)
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    return min(finite, key=lambda step: finite[step]) if finite else None


def prune(store: Store, run: str, keep: int, metric: str | None = None, upto: int | None = None) -> None:
    """Delete all finished checkpoints but the newest `keep` whole ones, and the best by a metric where one is named.

    Those after the step `upto` are of an attempt before; they were passed over, and are neither counted nor deleted.
    """
    steps = [step for step in complete(store, run) if upto is None or step <= upto]
    if len(steps) <= keep:
        return
    kept = [step for step in steps if not damage(store, run, step)][-keep:]
    if len(kept) < keep:
        return
    best_one = best(store, run, metric) if metric is not None else None
    for step in steps:
        if step < kept[0] and step != best_one:
            _delete(store, run, step)


def discard_unfinished(store: Store, run: str) -> None:
    """Delete what interrupted attempts left: folders without the marker.

    Nothing where the record is damaged, or says that one had its marker which has none: others may have lost theirs.
    """
    steps = _steps(store, run)
    try:
        last = last_sealed(store, run)
    except Damaged:
        return
    if last is not None and not steps.get(last, False):
        logger.warning("%s was finished once and has no %s now: nothing is cleared up", folder(run, last), MARKER)
        return
    for step, sealed in steps.items():
        if not sealed:
            _delete(store, run, step)


def _steps(store: Store, run: str) -> dict[int, bool]:
    """Step of each checkpoint folder, and whether it bears the marker."""
    sealed_steps: dict[int, bool] = {}
    for path in store.sizes(f"runs/{run}/checkpoints"):
        name, *inner = path.split("/")
        if found_step := _STEP.fullmatch(name):
            step = int(found_step[1])
            sealed_steps[step] = sealed_steps.get(step, False) or inner == [MARKER]
    return sealed_steps


def _written(store: Store, run: str, step: int) -> seals.Entries:
    """What was written, by its marker. Raises as `manifest`, and Damaged for nothing at all."""
    where = folder(run, step)
    written = seals.entries_of(manifest(store, run, step), f"{where}/{MARKER}")
    if not written:
        raise Damaged(f"{where}: no file was written")
    return written


def _sizes(store: Store, run: str, step: int) -> dict[str, int]:
    """Bytes of each file of a checkpoint, without the marker, and without what ranks told before it was sealed: one
    that was taken over may tell so later, which harms nothing."""
    sizes = store.sizes(folder(run, step))
    return {name: size for name, size in sizes.items() if name != MARKER and not name.startswith(REPORT)}


def _is_part(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(name == part or name.startswith(f"{part}/") for part in parts)


def _sha256(store: Store, name: str, size: int) -> str:
    total = hashlib.sha256()
    for offset in range(0, size, PIECE):
        total.update(store.read_range(name, offset, PIECE))
    return total.hexdigest()


def _refuse(store: Store, run: str, step: int, problems: list[str]) -> None:
    """Raise Damaged with the problems and the way out, if there are any."""
    if not problems:
        return
    older = [other for other in complete(store, run) if other < step]
    way = f"and that of step {older[-1]} is taken" if older else "and train again: there is none before it"
    *first, last = problems  # one line alone may be shown, so the last one says all
    raise Damaged(*first, f"{last}: move {folder(run, step)} away, {way}")


def _delete(store: Store, run: str, step: int) -> None:
    root = store.path(folder(run, step))
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm_file(f"{root}/{MARKER}")
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm(root, recursive=True)


def _local_folder(store: Store, run: str, step: int) -> Path | None:
    return Path(store.path(folder(run, step))) if store.is_folder else None
