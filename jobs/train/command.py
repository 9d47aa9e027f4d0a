"""`longtake train CONFIG`: train a world model, or an autoencoder, on clips that stream from a dataset.

Everything that can be refused is refused here, on the driver, before Ray or torch starts; what a rank does is in
`loop.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.cluster import accelerators
from longtake.config import config_hash, dump, load
from longtake.datasets.mixture import Mixture, open_data
from longtake.errors import UserError
from longtake.jobs.latents import tokenizers
from longtake.jobs.presets import in_words
from longtake.jobs.train import normalise
from longtake.jobs.train.check import (
    batch_problems,
    condition_problems,
    init_problems,
    memory_problems,
    on_latents,
    perceptual_problems,
    shape_problems,
    watch_problems,
)
from longtake.jobs.train.config import AutoencoderTraining, TrainConfig, WorldModelTraining
from longtake.jobs.train.plan import build_plan
from longtake.jobs.train.resume import (
    describe_resume,
    fork_of,
    named_run,
    require_nothing_lost,
    same_training,
    stored_config,
)
from longtake.models.config import AutoencoderConfig
from longtake.storage import lease
from longtake.storage.store import open_store
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.cluster.demand import Demand
    from longtake.datasets.mixture import Data
    from longtake.storage.lease import Lease
    from longtake.storage.store import Store
    from longtake.streaming.plan import Plan
    from longtake.tables.run_record import RunRecord

CONFIGS = Path(__file__).parents[1] / "configs" / "train"


def main(
    config: str | None,
    overrides: list[str],
    store: str,
    dry_run: bool,
    resume: str | None = None,
    fork: bool = False,
    brief: bool = False,
) -> None:
    """The command: check, then train; with `dry_run` print the plan and touch nothing."""
    if fork and resume is None:
        raise UserError("--fork: of which run? name it with --resume RUN")
    where = open_store(store)
    if config is not None:
        settings = load(TrainConfig, config, overrides, search=CONFIGS)
    elif resume is not None:
        settings = stored_config(where, resume, overrides)
    else:
        raise UserError("Missing argument 'CONFIG': a YAML path, or one that `longtake configs` lists")
    check(settings, where)
    if dry_run:
        going_on = describe_resume(settings, where, resume, fork) if resume else ""
        print(dump(settings, brief) + "\n" + describe(settings, where) + going_on)
        return
    where.require_writable()
    run = train(settings, where, resume=resume, fork=fork)
    print(f"run {run} is done: {_what_next(settings, where, run)}")


def _what_next(config: TrainConfig, store: Store, run: str) -> str:
    if isinstance(config, AutoencoderTraining):
        return f"longtake train CONFIG --set tokenizer={run} --store {store.argument}"
    return f"longtake evaluate --runs {run} --store {store.argument}"


def check(config: TrainConfig, store: Store) -> None:
    """Refuse what cannot run, all problems at once.

    Raises:
        UserError: no such dataset or tokenizer, frames of another shape, no pose, clips longer than episodes, uneven
            batches.
    """
    dataset = open_data(store, config.data.dataset, config.data.unlike)
    problems = [*shape_problems(config, dataset, store), *batch_problems(config), *perceptual_problems(config)]
    problems += [*init_problems(config, store), *watch_problems(config)]
    if isinstance(config, WorldModelTraining):
        problems += [*condition_problems(config, dataset), *memory_problems(config)]
    if problems:
        raise UserError(*problems)
    build_plan(config, dataset, "train")
    try:
        build_plan(config, dataset, "val")
    except UserError as error:
        raise UserError(*(f"split val, held out for validation: {line}" for line in error.lines)) from error
    if isinstance(config, WorldModelTraining) and (line := normalise.warning(config, dataset)):
        print(f"warning: {line}", flush=True)


def describe(config: TrainConfig, store: Store) -> str:
    """The plan in words: data, steps, workers and what they ask of the machine."""
    from longtake.cluster.launch import machine_cpus

    dataset = open_data(store, config.data.dataset, config.data.unlike)
    plan = build_plan(config, dataset, "train")
    need = demand(config)
    each = need.cpus_per_worker + need.data_cpus_per_worker
    lengths = ", then ".join(
        f"{stage.frames} frames" + (f" until step {stage.until}" if stage.until else "")
        for stage in config.data.curriculum
    )
    return "\n".join(
        [
            f"dataset   {dataset.name} ({dataset.fingerprint}), {len(dataset.episodes('train'))} episodes to train on",
            *_drawn(config, dataset, plan),
            f"clips     {_clips_in_words(config)}, {lengths}; {config.data.frames_per_step} frames a step",
            f"model     {_model_in_words(config)}",
            f"steps     {config.steps}, an epoch is {plan.steps_per_epoch:.0f}; "
            f"a checkpoint every {config.checkpoint_every}",
            f"workers   {_workers_in_words(config)} x {each:g} CPUs of {machine_cpus()}"
            + accelerators.describe(config.gpus_per_worker, config.workers),
            f"config    {config_hash(config)}",
        ]
    )


def demand(config: TrainConfig) -> Demand:
    """What the run cannot do without."""
    from longtake.cluster.demand import Demand

    return Demand(config.min_workers or config.workers, gpus_per_worker=accelerators.least(config.gpus_per_worker))


def _gpus(config: TrainConfig) -> float:
    """Cards of each worker, on the Ray that is open or, without workers, of this process; tells of idle ones."""
    from longtake.cluster.launch import count_gpus

    cards = count_gpus() if config.workers else accelerators.local_count()
    workers = config.min_workers or config.workers or 1
    each = accelerators.resolve(config.gpus_per_worker, workers, cards) if config.workers else float(min(1, cards))
    for line in accelerators.idle_warnings(each, config.workers or 1, cards):
        print(f"warning: {line}", flush=True)
    return each


def _workers_in_words(config: TrainConfig) -> str:
    return f"{config.min_workers} to {config.workers}" if config.min_workers else f"{config.workers}"


def _drawn(config: TrainConfig, dataset: Data, plan: Plan) -> list[str]:
    """What each dataset of a mixture gives."""
    if not isinstance(dataset, Mixture):
        return []
    return [
        f"          {one.name}: {share:.1%} of the clips, gone through {epochs:.2f} times"
        for one, (share, epochs) in zip(dataset.datasets, plan.epochs(config.steps), strict=True)
    ]


def _clips_in_words(config: TrainConfig) -> str:
    data = config.data
    every = f", every {data.stride}. frame" if data.stride > 1 else ""
    return data.clip + every + ", starts drawn anew in every epoch" * data.random_start


def _model_in_words(config: TrainConfig) -> str:
    if isinstance(config.model, AutoencoderConfig):
        return "autoencoder, latents of {} x {} x {}".format(*config.model.latent)
    on = f" on latents of {config.tokenizer}" if on_latents(config) else ""
    return in_words(config.model) + on


def train(
    config: TrainConfig, store: Store, *, resume: str | None = None, fork: bool = False, reuse: bool = False
) -> str:
    """Run it to its end and return the run's id.

    Args:
        resume: go on with this run; its config must be the same.
        fork: go on from its newest checkpoint as a new run, whose config may be another.
        reuse: go on with (or return) the newest run of this very config and dataset, where there is one.

    Raises:
        UserError: an unknown run, or one of another config or dataset.
    """
    from longtake.provenance import new_run_id

    config = _settled(config, store)
    dataset = open_data(store, config.data.dataset, config.data.unlike)
    if resume and fork:
        forked_from = fork_of(store, resume, config, dataset)
        return _train(config, store, new_run_id(), forked_from=forked_from)
    earlier = (
        named_run(store, resume, config, dataset)
        if resume
        else same_training(store, config, dataset)
        if reuse
        else None
    )
    if earlier is not None and earlier["status"] == "done" and _is_kept(store, str(earlier["run"]), config.steps):
        print(f"{config.name}: run {earlier['run']} has done this already: reused", flush=True)
        return str(earlier["run"])
    if earlier is None:
        return _train(config, store, new_run_id())
    return _train(config, store, str(earlier["run"]), forked_from=str(earlier["forked_from"]))


def _is_kept(store: Store, run: str, step: int) -> bool:
    """Whether the last checkpoint of a finished run is as it was written; where rot has taken it, the run goes on from
    the one before."""
    return checkpoints.newest(store, run, hashed=True) == step


def _train(config: TrainConfig, store: Store, run: str, forked_from: str = "") -> str:
    """Begin or go on with a run, and stay with it to its end; `forked_from` is RUN@STEP or nothing."""
    from longtake.cluster.launch import launch
    from longtake.jobs.display.progress_bar import training_bar
    from longtake.jobs.train.loop import train_loop  # which needs torch
    from longtake.jobs.train.memory_check import require_memory
    from longtake.training.fit import fit

    require_memory(config)
    with (
        lease.of_run(store, run) as held,
        launch(demand(config)) if config.workers else contextlib.nullcontext(),  # what does not fit leaves no run
    ):
        gpus = _gpus(config)
        start = checkpoints.newest(store, run, hashed=True)
        if start is None:
            require_nothing_lost(config, store, run)
            if forked_from:
                source, _, step = forked_from.partition("@")
                with lease.of_run(store, source):  # else `keep` could delete it meanwhile
                    checkpoints.copy(store, source, start := int(step), run)
        record = start_record(config, store, run, held, forked_from=forked_from)
        print(f"{config.name}: run {run}" + (f" goes on from step {start}" if start is not None else ""), flush=True)
        with record, record_training_cost(record, store), training_bar(config.name, config.steps) as bar:
            fit(
                train_loop,
                config,
                store=store,
                run_id=run,
                workers=config.workers,
                min_workers=config.min_workers,
                gpus_per_worker=gpus,
                max_failures=config.max_failures,
                keep=config.keep,
                keep_best=config.keep_best,
                on_progress=bar,
                held=held,
            )
    return run


@contextlib.contextmanager
def record_training_cost(record: RunRecord, store: Store) -> Iterator[None]:
    """Write into a run's record, however it ends, what its steps have cost."""
    try:
        yield
    finally:
        # A store that is away must not hide why the run ended.
        with contextlib.suppress(OSError, UserError):
            columns = ["frames", "worker_s", "bytes_read"]
            steps = store.table("steps", where=f"run == {record.run!r}", columns=columns)
            record.note(
                frames=int(steps.frames.sum()),
                worker_s=float(steps.worker_s.sum()),
                bytes_read=int(steps.bytes_read.sum()),
            )


def _settled(config: TrainConfig, store: Store) -> TrainConfig:
    """The config with the runs that it names by their ids: a name may mean another run tomorrow."""
    changes: dict[str, Any] = {}
    if isinstance(config, WorldModelTraining):
        changes["tokenizer"] = tokenizers.resolve(store, config.tokenizer)
    if config.init is not None:
        from longtake.jobs.train import init_weights  # which needs torch

        changes["init"] = init_weights.resolve(store, config.init)
    return config.model_copy(update=changes)


def start_record(
    config: TrainConfig, store: Store, run: str, held: Lease | None = None, forked_from: str = "", **more: Any
) -> RunRecord:
    """The run's record in `runs`, as it begins; `held` is its lease, `more` are further columns."""
    from longtake.tables.run_record import RunRecord

    dataset = open_data(store, config.data.dataset, config.data.unlike)
    return RunRecord.start(
        store,
        run,
        kind=config.run_kind,
        name=config.name,
        config=config,
        dataset=dataset.fingerprint,
        seed=config.seed,
        dataset_name=config.data.first,
        forked_from=forked_from,
        lease=held,
        **more,
    )
