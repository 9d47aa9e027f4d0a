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
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from longtake.cluster import demand, launch, preemption
from longtake.errors import UserError
from longtake.storage import lease
from longtake.training import checkpoints
from longtake.training import progress_file as progress
from longtake.training.context import Context, LocalContext, OnProgress, RayContext
from longtake.training.worker_errors import LoopError, how_died, is_loss, kernel_kills

if TYPE_CHECKING:
    from longtake.storage.lease import Lease
    from longtake.storage.store import Store

Payload = TypeVar("Payload")


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
    taken = contextlib.nullcontext(held) if held is not None else lease.of_run(store, run_id)
    with taken as own, preemption.deferred():
        if workers == 0:
            options = {"keep": keep, "keep_best": keep_best, "on_progress": on_progress}
            alone = LocalContext(store, run_id, **options, held=own)  # type: ignore[arg-type]
            with contextlib.closing(alone):
                loop(alone, payload)
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
    session = job["context"]["session"]
    trainer = _trainer(job, need, workers, max_failures, {"name": session, **storage})
    try:
        progress.run_watched(trainer.fit, watch, held.raise_if_lost, _pass_on_sigterm(store, run, session))
    except Exception as error:
        _explain(error, store, run, max_failures, kills)
        raise
    finally:
        if held.lost is None:  # else it is another's by now
            progress.forget_request(store, run)
            with contextlib.suppress(FileNotFoundError):
                store.fs.rm(store.path("runs", run, "ray"), recursive=True)


def _pass_on_sigterm(store: Store, run: str, session: str) -> Callable[[], None]:
    """A watch that asks the ranks for a last checkpoint, once the driver is told to go."""
    passed_on = False

    def watch() -> None:
        nonlocal passed_on
        if preemption.is_told() and not passed_on:
            progress.ask_to_end(store, run, session)
            passed_on = True

    return watch


def _worker(job: dict[str, Any]) -> None:
    """What a Ray Train worker runs."""
    context = RayContext(**job["context"])
    try:
        job["loop"](context, job["payload"])
    except Exception as error:
        if is_loss(error):
            raise
        context.await_seal()
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
