"""The train loop, on one screen: batch, loss, step, report, checkpoint. It runs in every rank, whatever is trained.

Clips come from the plan and noise from the step, so the step is the only position: a resumed run, or one on another
number of workers, sees the same batches under the same noise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor, nn

from longtake.datasets.mixture import Data, Mixture, open_data
from longtake.jobs.train import init_weights, normalise
from longtake.jobs.train.autoencoder import AutoencoderLearner
from longtake.jobs.train.config import AutoencoderTraining, TrainConfig, WorldModelTraining
from longtake.jobs.train.plan import build_plan
from longtake.jobs.train.step_log import StepLog
from longtake.jobs.train.world_model import WorldModelLearner
from longtake.models.autoencoder import Autoencoder
from longtake.models.world_model import WorldModel
from longtake.streaming.clips import ClipBatch
from longtake.streaming.loader import batches, fail_if_too_many_replaced, local_batches
from longtake.training.engine import Engine, step_of

if TYPE_CHECKING:
    from longtake.training.context import Context

Item = TypeVar("Item")


class Learner(Protocol):
    """What a rank trains: a model in its engine, and all that is its own of a kind of model."""

    def losses(self, clips: ClipBatch, step: int) -> Iterator[Tensor]:
        """The loss of this rank's clips, in parts that sum to it."""
        ...

    def validate(self) -> dict[str, float]:
        """Measures of held-out clips, averaged over ranks. Every rank calls it."""
        ...

    def save_samples(self, step: int) -> None:
        """Pictures of what the model makes after a step, where they are asked for. Every rank calls it."""
        ...

    def write(self, folder: Path) -> None:
        """What a reader of a checkpoint needs beside the weights."""
        ...


def train_loop(context: Context, config: TrainConfig) -> None:
    """Train one rank from the newest checkpoint (or from the start) to the last step."""
    dataset = open_data(context.store, config.data.dataset, config.data.unlike)
    torch.manual_seed(config.seed)
    with context.resume() as folder:
        start = step_of(folder) if folder else 0
        clips_to_come = prefetch_first(stream(context, config, dataset, start))
        model = init_weights.new_model(config)
        if folder is None:
            init_weights.fill(model, config, context.store)
        engine = Engine(model, config.engine, steps=config.steps, device=context.device)
        if folder:
            engine.load(folder)
        learner = new_learner(context, config, dataset, model, engine, folder)
    log = StepLog(context, start, config)
    for step, clips, waited in timed(clips_to_come):
        loss = 0.0
        for part in learner.losses(clips, step):
            engine.backward(part)
            loss += part.item()
        lr, norm = engine.lr, engine.step()
        done = step + 1
        log.add(step, {"loss": loss, "grad_norm": norm, "lr": lr, "data_wait": waited, **batch_metrics(clips, dataset)})
        if done % config.validation.every == 0 or done == config.steps:
            log.note(**learner.validate())
        learner.save_samples(done)
        context.progress(done, config.steps, **log.latest)
        if done % config.checkpoint_every == 0 or done == config.steps or log.is_ending:
            log.flush()
            context.save(done, writer(context, engine, learner, done), log.metrics())
            log.raise_if_ending(done)
    context.finish()
    log.close()


def new_learner(
    context: Context, config: TrainConfig, dataset: Data, model: nn.Module, engine: Engine, checkpoint: Path | None
) -> Learner:
    """What the config trains; `checkpoint` is the folder that it goes on from."""
    if isinstance(config, AutoencoderTraining):
        assert isinstance(model, Autoencoder)
        return AutoencoderLearner(context, config, dataset, model, engine)
    assert isinstance(config, WorldModelTraining) and isinstance(model, WorldModel)
    return WorldModelLearner(context, config, dataset, model, engine, checkpoint)


def writer(context: Context, engine: Engine, learner: Learner, step: int) -> Callable[[Path], None]:
    """What a rank writes into a checkpoint: the engine's part as it is now; the first one also what a reader needs."""
    write_engine = engine.snapshot({"step": step})

    def write(folder: Path) -> None:
        write_engine(folder)
        if context.rank == 0:
            learner.write(folder)

    return write


def stream(context: Context, config: TrainConfig, dataset: Data, start: int) -> Iterator[tuple[int, ClipBatch]]:
    """This rank's clips of every step to come, through Ray Data, or without it where there is no Ray."""
    plan = build_plan(config, dataset, "train")
    where = (context.rank, context.world, start, config.steps)
    labels = normalise.labels_of(config) if isinstance(config, WorldModelTraining) else ()
    if config.workers:
        # Elastic workers hold the CPUs of their data tasks themselves: how many fit is then a sum.
        clips = batches(dataset, plan, *where, cpus=0.0 if config.min_workers else 0.5, labels=labels)
    else:
        clips = local_batches(dataset, plan, *where, labels=labels)
    return fail_if_too_many_replaced(clips, plan, context.world, config.data.max_replaced)


def prefetch_first(source: Iterator[Item]) -> Iterator[Item]:
    """The same items, of which the first is fetched from now on: the stream starts up while the model does."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="first clips")
    first = thread.submit(lambda: list(itertools.islice(source, 1)))
    thread.shutdown(wait=False)

    def items() -> Iterator[Item]:
        yield from first.result()
        yield from source

    return items()


def batch_metrics(clips: ClipBatch, data: Data) -> dict[str, float]:
    """What a step's row says of a rank's clips: their length, the bytes that they took from the storage, the share
    that was replaced, and that of each dataset of a mixture."""
    numbers = {
        "clip_frames": clips.frames.shape[1],
        "bytes_read": float(clips.bytes_read),
        "replaced": float((clips.replaced > 0).mean()),
    }
    if isinstance(data, Mixture):
        part = data.part_of(clips.episode)
        numbers |= {f"drawn.{one.name}": float((part == number).mean()) for number, one in enumerate(data.datasets)}
    return numbers


def timed(source: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, Item, float]]:
    """Each item with the seconds spent waiting for it."""
    while True:
        began = time.monotonic()
        try:
            step, item = next(source)
        except StopIteration:
            return
        yield step, item, time.monotonic() - began
