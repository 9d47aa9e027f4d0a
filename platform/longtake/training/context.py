"""What a train loop is given: its rank, its store, its checkpoints, and whom it reports to."""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from longtake.cluster import preemption
from longtake.errors import Damaged, UserError
from longtake.storage import lease
from longtake.training import checkpoints, ranks
from longtake.training import progress_file as progress
from longtake.training.background import Background
from longtake.training.progress_file import Progress
from longtake.training.worker_errors import is_of_storage

if TYPE_CHECKING:
    from longtake.storage.lease import Lease, Token
    from longtake.storage.store import Store


logger = logging.getLogger(__name__)

SETTLE_S = 30.0
"""How long a loop that failed waits for its last save, whose other ranks may be gone."""

Write = Callable[[Path], None]


OnProgress = Callable[[Progress], None]


class Context(Protocol):
    """What a train loop knows of the world around it."""

    rank: int
    world: int
    device: str
    run_id: str
    store: Store

    @property
    def is_ending(self) -> bool:
        """Whether this rank has been told that its machine is taken back. Others may not know: agree before acting."""
        ...

    def resume(self) -> AbstractContextManager[Path | None]:
        """The newest complete checkpoint as a folder to read, None for a new run. Every rank asks first."""
        ...

    def save(self, step: int, write: Write, metrics: dict[str, float] | None = None) -> None:
        """Checkpoint `step` in the background: `write(folder)` puts this rank's files there. Every rank calls it.

        `write` holds all that it writes (`Engine.snapshot`): it is called from a thread, while the training goes on.
        """
        ...

    def finish(self) -> None:
        """Wait until what is being saved is whole. Every rank calls it, at the end of its loop."""
        ...

    def progress(self, step: int, of: int, **numbers: float) -> None:
        """Tell whoever watches that `step` of `of` steps are done. Cheap; only rank 0 is heard."""
        ...

    def mean(self, **numbers: float) -> dict[str, float]:
        """Each number averaged over ranks. Every rank calls it with the same names."""
        ...

    def require_lease(self) -> None:
        """Raise lease.Lost if another driver has taken the run over: asked before rows of the run are written."""
        ...


class _StoreContext(ABC):
    """A context whose memory is the store; the two below differ in where they run and whom they tell."""

    def __init__(
        self, store: Store, run_id: str, rank: int, world: int, device: str, keep: int, keep_best: str | None
    ) -> None:
        self.store, self.run_id = store, run_id
        self.rank, self.world, self.device = rank, world, device
        self._keep, self._keep_best = keep, keep_best
        self._saving = Background("checkpoint")
        self._of_before: set[int] | None = None
        self._last_begun = 0

    @contextlib.contextmanager
    def resume(self) -> Iterator[Path | None]:
        """The newest whole checkpoint; what an interrupted attempt left half-written is removed.

        Raises:
            UserError: none is whole, and yet there was one.
        """
        with contextlib.ExitStack() as stack:
            yield self._open_newest(stack)

    def save(self, step: int, write: Write, metrics: dict[str, float] | None = None) -> None:
        """Wait for the save before, then leave all to a thread. A step that has its checkpoint is left as it is.

        What goes wrong there is raised by the next call of `save`, `progress` or `finish`.

        Raises:
            UserError: the store takes no more; the checkpoints before are untouched.
            lease.Lost: another driver goes on with the run; nothing is sealed.
        """
        self._saving.wait()
        if ranks.of_first(self.rank == 0 and self._is_saved(step), self.world):
            return
        self._last_begun = step
        self._saving.start(lambda: self._write(step, write, metrics or {}))

    def finish(self) -> None:
        """See Context. Raises as `save`."""
        self._saving.wait()

    def _write(self, step: int, write: Write, metrics: dict[str, float]) -> None:
        """Write; the first rank waits for all, seals and thins out."""
        self.require_lease()
        try:
            with checkpoints.writing(self.store, self.run_id, step) as folder:
                write(folder)
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise UserError(self._not_saved(step, error)) from error
        if self.rank == 0:
            checkpoints.wait_for_writers(self.store, self.run_id, step, self.world)
            self.require_lease()
            checkpoints.seal(self.store, self.run_id, step, self.world, metrics, writers=self.world)
            checkpoints.prune(self.store, self.run_id, self._keep, self._keep_best, upto=step)

    def progress(self, step: int, of: int, **numbers: float) -> None:
        """Rank 0 tells; the others are silent."""
        self._saving.raise_if_failed()
        if self.rank == 0:
            self._tell(Progress(step, of, numbers))

    def mean(self, **numbers: float) -> dict[str, float]:
        """Each number averaged over ranks."""
        return ranks.mean(numbers, self.world, self.device)

    def _not_saved(self, step: int, error: Exception) -> str:
        before = "what there was before cannot be seen now"
        with contextlib.suppress(OSError, UserError):
            if self.world == 1:  # others may still be writing theirs; who resumes clears up
                checkpoints.discard_unfinished(self.store, self.run_id)
            newest = checkpoints.newest(self.store, self.run_id)
            before = "there is none before it" if newest is None else f"that of step {newest} is whole"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return (
            f"the checkpoint of step {step} could not be written: {reason}; {before}: mend the store and go on with "
            f"--resume {self.run_id}"
        )

    @abstractmethod
    def require_lease(self) -> None:
        """Raise lease.Lost if the run is another driver's by now."""

    @abstractmethod
    def _tell(self, report: Progress) -> None:
        """Pass on how far the run is."""

    def _is_saved(self, step: int) -> bool:
        """Whether a step has its checkpoint; one that was damaged is written again, in its place."""
        if self._of_before is None:  # the run is ours alone: nobody else adds to them
            self._of_before = set(checkpoints.complete(self.store, self.run_id))
        return step in self._of_before and not checkpoints.damage(self.store, self.run_id, step, hashed=True)

    def _open_newest(self, stack: contextlib.ExitStack) -> Path | None:
        """Every rank compares what it will read; if one finds damage, all take an older checkpoint."""
        damaged: list[int] = []
        while True:
            step = ranks.of_first(self._newest(damaged) if self.rank == 0 else None, self.world)
            if step is None:
                return None
            opening, problem = contextlib.ExitStack(), ""
            try:
                folder = opening.enter_context(checkpoints.opened(self.store, self.run_id, step))
            except Damaged as error:
                problem = error.lines[0]
                logger.warning("damaged checkpoint passed over: %s", problem)
            if not any(ranks.of_all(problem, self.world)):
                stack.push(opening)
                return folder
            opening.close()
            damaged.append(step)

    def _newest(self, but: list[int]) -> int | None:
        self.require_lease()
        if not but:
            checkpoints.discard_unfinished(self.store, self.run_id)
        step = checkpoints.newest(self.store, self.run_id, but=but)
        if step is None:
            checkpoints.require_none(self.store, self.run_id)
        return step


class LocalContext(_StoreContext):
    """This process alone, no Ray: unit tests, benchmarks, a single GPU box. Every step's progress is told.

    Where no lease of the run is given it takes one before it touches a checkpoint, and frees it when it goes away.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        keep: int = 2,
        keep_best: str | None = None,
        device: str = "",
        on_progress: OnProgress | None = None,
        held: Lease | None = None,
    ) -> None:
        super().__init__(store, run_id, 0, 1, device or _own_device(), keep, keep_best)
        self._on_progress = on_progress
        self._lease = held

    def close(self) -> None:
        """Let a save that is in flight end."""
        self._saving.settle(SETTLE_S)

    @property
    def is_ending(self) -> bool:
        """See Context."""
        return preemption.is_told()

    def require_lease(self) -> None:
        """See Context. Raises lease.Held where another holds it."""
        if self._lease is None:
            self._lease = lease.of_run(self.store, self.run_id)
            weakref.finalize(self, self._lease.release)
        self._lease.require()

    def _tell(self, report: Progress) -> None:
        if self._lease is not None:
            self._lease.raise_if_lost()
        if self._on_progress is not None:
            self._on_progress(report)


class RayContext(_StoreContext):
    """One rank of a Ray Train worker group."""

    def __init__(
        self, store: Store, run_id: str, *, keep: int, keep_best: str | None, session: str, token: Token
    ) -> None:
        import ray.train
        import ray.train.torch

        world = ray.train.get_context()
        device = str(ray.train.torch.get_device())
        super().__init__(store, run_id, world.get_world_rank(), world.get_world_size(), device, keep, keep_best)
        self._session, self._token = session, token
        self._teller = progress.ProgressWriter(store, run_id, session) if self.rank == 0 else None
        self._restarts = self._count_restarts() if self.rank == 0 else 0

    @property
    def is_ending(self) -> bool:
        """See Context: the driver asks rank 0."""
        return self._teller is not None and self._teller.is_asked_to_end

    def require_lease(self) -> None:
        """See Context: the driver holds it."""
        self._token.require(self.store)

    def close(self) -> None:
        """Tell the last progress, and let a save that is in flight end."""
        self._saving.settle(SETTLE_S)
        if self._teller is not None:
            self._teller.close()

    def await_seal(self) -> None:
        """Let the first rank seal what is being saved: once one rank ends with an error, Ray ends them all."""
        self._saving.settle(SETTLE_S)
        until = time.monotonic() + SETTLE_S
        with contextlib.suppress(OSError, UserError):  # the error that ends the loop is the one to be told
            while (checkpoints.newest(self.store, self.run_id) or 0) < self._last_begun and time.monotonic() < until:
                time.sleep(0.1)

    def _count_restarts(self) -> int:
        """This session's file from an earlier attempt means that this one replaces lost workers."""
        before = progress.read(self.store, self.run_id)
        if before is None or before.session != self._session:
            now = Progress(0, 0, session=self._session)
        else:
            now = replace(before, restarts=before.restarts + 1)
        progress.write(self.store, self.run_id, now)
        return now.restarts

    def _tell(self, report: Progress) -> None:
        if self._teller is not None:
            self._teller(replace(report, session=self._session, restarts=self._restarts))


def _own_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
