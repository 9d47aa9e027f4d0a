"""Run a train loop on workers that may die: Ray Train starts and replaces them, the store remembers.

The loop is a plain function `loop(context, payload)` of an importable module. Every rank runs it; it asks the
context where to go on (`resume`), hands it checkpoints (`save`) and tells how far it is (`progress`). It runs
unchanged in this process (`workers=0`, LocalContext) and on Ray workers (RayContext).

Resume looks only at the store (checkpoints.py), never at Ray's own state: replaced workers of the same fit,
and a new driver with the same run id after the old one was killed, find the same newest complete checkpoint.
Ray gets a fresh name per fit, and its small bookkeeping folder goes away afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from longtake.cluster import demand, launch
from longtake.errors import Damaged, UserError
from longtake.storage import lease
from longtake.training import checkpoints, ranks
from longtake.training import progress_file as progress
from longtake.training.progress_file import Progress
from longtake.training.worker_errors import LoopError, how_died, is_loss, is_of_storage, kernel_kills

if TYPE_CHECKING:
    from longtake.storage.lease import Lease, Token
    from longtake.storage.store import Store

logger = logging.getLogger(__name__)
Payload = TypeVar("Payload")
Write = Callable[[Path], None]
OnProgress = Callable[[Progress], None]


class Context(Protocol):
    """What a train loop knows of the world around it."""

    rank: int
    world: int
    device: str
    run_id: str
    store: Store

    def resume(self) -> AbstractContextManager[Path | None]:
        """The newest complete checkpoint as a folder to read, None for a new run. Every rank asks first."""
        ...

    def save(self, step: int, write: Write, metrics: dict[str, float] | None = None) -> None:
        """Checkpoint `step`: `write(folder)` puts this rank's files there. Every rank calls it."""
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

    @contextlib.contextmanager
    def resume(self) -> Iterator[Path | None]:
        """The newest whole checkpoint; what an interrupted attempt left half-written is removed.

        Raises:
            UserError: none is whole, and yet there was one.
        """
        with contextlib.ExitStack() as stack:
            yield self._open_newest(stack)

    def save(self, step: int, write: Write, metrics: dict[str, float] | None = None) -> None:
        """Write, wait for all, seal, thin out. A step that has its checkpoint is left as it is.

        Raises:
            UserError: the store takes no more; the checkpoints before are untouched.
            lease.Lost: another driver goes on with the run; nothing is sealed.
        """
        self.require_lease()
        if ranks.of_first(self.rank == 0 and self._is_saved(step), self.world):
            return
        try:
            with checkpoints.writing(self.store, self.run_id, step) as folder:
                write(folder)
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise UserError(self._not_saved(step, error)) from error
        ranks.wait(self.world)
        if self.rank == 0:
            self.require_lease()
            checkpoints.seal(self.store, self.run_id, step, self.world, metrics or {}, writers=self.world)
            checkpoints.prune(self.store, self.run_id, self._keep, self._keep_best, upto=step)
        ranks.wait(self.world)

    def progress(self, step: int, of: int, **numbers: float) -> None:
        """Rank 0 tells; the others are silent."""
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
    def _tell(self, told: Progress) -> None:
        """Pass on how far the run is."""

    def _is_saved(self, step: int) -> bool:
        """Whether a step has its checkpoint; one that was damaged is written again, in its place."""
        there = step in checkpoints.complete(self.store, self.run_id)
        return there and not checkpoints.damage(self.store, self.run_id, step, hashed=True)

    def _open_newest(self, stack: contextlib.ExitStack) -> Path | None:
        """Every rank compares what it will read; if one finds damage, all take an older checkpoint."""
        damaged: list[int] = []
        while True:
            step = ranks.of_first(self._newest(damaged) if self.rank == 0 else None, self.world)
            if step is None:
                return None
            opening, told = contextlib.ExitStack(), ""
            try:
                folder = opening.enter_context(checkpoints.opened(self.store, self.run_id, step))
            except Damaged as error:
                told = error.lines[0]
                logger.warning("damaged checkpoint passed over: %s", told)
            if not any(ranks.of_all(told, self.world)):
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

    def require_lease(self) -> None:
        """See Context. Raises lease.Held where another holds it."""
        if self._lease is None:
            self._lease = lease.of_run(self.store, self.run_id)
            weakref.finalize(self, self._lease.release)
        self._lease.require()

    def _tell(self, told: Progress) -> None:
        if self._lease is not None:
            self._lease.raise_if_lost()
        if self._on_progress is not None:
            self._on_progress(told)


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
        self._teller = progress.Teller(store, run_id) if self.rank == 0 else None
        self._restarts = self._count_restarts() if self.rank == 0 else 0

    def require_lease(self) -> None:
        """See Context: the driver holds it."""
        self._token.require(self.store)

    def close(self) -> None:
        """Tell the last progress."""
        if self._teller is not None:
            self._teller.close()

    def _count_restarts(self) -> int:
        """This session's file from an earlier attempt means that this one replaces lost workers."""
        before = progress.read(self.store, self.run_id)
        if before is None or before.session != self._session:
            now = Progress(0, 0, session=self._session)
        else:
            now = replace(before, restarts=before.restarts + 1)
        progress.write(self.store, self.run_id, now)
        return now.restarts

    def _tell(self, told: Progress) -> None:
        if self._teller is not None:
            self._teller(replace(told, session=self._session, restarts=self._restarts))


def fit(
    loop: Callable[[Context, Payload], None],
    payload: Payload,
    *,
    store: Store,
    run_id: str,
    workers: int = 1,
    min_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    max_failures: int = 3,
    keep: int = 2,
    keep_best: str | None = None,
    on_progress: OnProgress | None = None,
    held: Lease | None = None,
) -> None:
    """Run `loop(context, payload)` to its end on `workers` Ray workers, or in this process for 0.

    Goes on from the newest complete checkpoint of `run_id`, and keeps the newest `keep`, and
    the one with the lowest value of the metric `keep_best`. With `min_workers` it starts, and goes on, with as few as
    those while the cluster has no room for more; the loop then leaves its data tasks no CPUs of their own. Lost workers
    are replaced up to `max_failures` times; an error of the loop itself ends the run at once and is raised here,
    with the worker's traceback as a note. `on_progress` is called in this thread, at most every half second;
    `of` is 0 while workers get ready. `held`: the run's lease, taken here if it is not given. UserError if the workers
    do not fit the machine, or are lost too often, or if another driver holds the run, or takes it over.
    """
    with contextlib.nullcontext(held) if held is not None else lease.of_run(store, run_id) as own:
        if workers == 0:
            told = {"keep": keep, "keep_best": keep_best, "on_progress": on_progress}
            loop(LocalContext(store, run_id, **told, held=own), payload)  # type: ignore[arg-type]
            return
        session = uuid.uuid4().hex[:8]
        context = {"keep": keep, "keep_best": keep_best, "session": session, "token": own.token}
        job = {"loop": loop, "payload": payload, "context": {"store": store, "run_id": run_id, **context}}
        need = demand.Demand(min_workers or workers, gpus_per_worker=gpus_per_worker)
        with launch.launch(need):
            watch = progress.watcher(store, run_id, session, on_progress)
            _fit_on_ray(job, need, workers, max_failures, watch, own)


def _fit_on_ray(
    job: dict[str, Any],
    need: demand.Demand,
    workers: int,
    max_failures: int,
    watch: Callable[[], None],
    held: Lease,
) -> None:
    """Run a job on the open Ray to its end, or until its lease is lost."""
    store, run = job["context"]["store"], job["context"]["run_id"]
    filesystem, root = store.pyarrow()
    storage = {"storage_filesystem": filesystem, "storage_path": f"{root}/runs/{run}/ray"}
    kills = kernel_kills()
    trainer = _trainer(job, need, workers, max_failures, {"name": job["context"]["session"], **storage})
    try:
        progress.run_watched(trainer.fit, watch, held.raise_if_lost)
    except Exception as error:
        _explain(error, store, run, max_failures, kills)
        raise
    finally:
        if held.lost is None:  # else it is another's by now
            with contextlib.suppress(FileNotFoundError):
                store.fs.rm(store.path("runs", run, "ray"), recursive=True)


def _worker(job: dict[str, Any]) -> None:
    """What a Ray Train worker runs."""
    context = RayContext(**job["context"])
    try:
        job["loop"](context, job["payload"])
    except Exception as error:
        if is_loss(error):
            raise
        raise LoopError.of(error) from None
    finally:
        context.close()


def _trainer(job: dict[str, Any], need: demand.Demand, workers: int, max_failures: int, storage: dict[str, Any]) -> Any:
    """Of `workers`, or of as few as are needed: Ray counts elastic ones by whole CPUs, so theirs include the data's."""
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    class StopOnLoopError(UserCallback):
        """Ray would try a loop's own error again; an exception of a callback ends the run."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, LoopError):
                    raise error

    elastic = need.workers < workers
    resources = {"CPU": need.cpus_per_worker + need.data_cpus_per_worker * elastic}
    if need.gpus_per_worker:
        resources["GPU"] = need.gpus_per_worker
    return TorchTrainer(
        _worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=(need.workers, workers) if elastic else workers,
            use_gpu=need.gpus_per_worker > 0,
            resources_per_worker=resources,
            # Cards of one machine are near each other; ranks without cards only share its CPUs.
            placement_strategy="PACK" if need.gpus_per_worker else "SPREAD",
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # Ray's annotation is still that of Train V1
            **storage,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[StopOnLoopError()],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _explain(error: Exception, store: Store, run: str, max_failures: int, kills: int) -> None:
    """Raise what a user can use instead of Ray's error, if this is one whose cause we know.

    `kills`: of `kernel_kills`, when the run began.
    """
    from ray.train import ControllerError, WorkerGroupError

    cause: BaseException | None = error
    while isinstance(cause, ControllerError):
        cause = cause.controller_failure
    if isinstance(cause, LoopError):
        raise cause.original() from None
    if isinstance(cause, WorkerGroupError):
        step = checkpoints.newest(store, run)
        kept = "there is no checkpoint yet" if step is None else f"the checkpoint of step {step} is whole"
        died = how_died(cause.worker_failures, kernel_kills() - kills)
        raise UserError(
            f"run {run}: {died} more often than the {max_failures} times it may be replaced; {kept}; start the run "
            "again to go on"
        ) from error


def _own_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
