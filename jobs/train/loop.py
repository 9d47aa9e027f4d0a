"""The train loop, on one screen: batch, loss, step, report, checkpoint. It runs in every rank.

Clips come from the plan and noise from the step, so the step is the only position: a resumed run, or one on another
number of workers, sees the same batches under the same noise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from longtake.datasets.mixture import Data, Mixture, open_data
from longtake.jobs.latents import tokenizers
from longtake.jobs.train import init_weights
from longtake.jobs.train.config import TrainConfig, WorldModelTraining
from longtake.jobs.train.loss import Batch, Noised, TrainingLoss, seeded
from longtake.jobs.train.plan import build_plan
from longtake.models.conditions import Conditions
from longtake.models.description import WorldModelDescription
from longtake.models.exported import TOKENIZER
from longtake.models.state.monitor import state_statistics
from longtake.models.tokenizer import Tokenizer, as_latents
from longtake.models.world_model import WorldModel
from longtake.streaming.clips import ClipBatch, load_clips
from longtake.streaming.loader import batches, fail_if_too_many_replaced, local_batches
from longtake.streaming.plan import rank_slice
from longtake.tables import table as tables
from longtake.training import checkpoints
from longtake.training.engine import Engine, step_of

if TYPE_CHECKING:
    from longtake.jobs.train.loggers import MetricLoggers
    from longtake.training.context import Context

Item = TypeVar("Item")
COSTS = ("frames", "worker_s", "bytes_read")
"""What models are compared at: columns of `steps` whose sum so far a checkpoint tells."""


def train_loop(context: Context, config: WorldModelTraining) -> None:
    """Train one rank from the newest checkpoint (or from the start) to the last step."""
    dataset = open_data(context.store, config.data.dataset)
    torch.manual_seed(config.seed)
    with context.resume() as folder:
        start = step_of(folder) if folder else 0
        clips_to_come = prefetch_first(stream(context, config, dataset, start))
        model = WorldModel(config.model)
        model.recompute = config.recompute
        if folder is None:
            init_weights.fill(model, config, context.store)
        engine = Engine(model, config.engine, steps=config.steps, device=context.device)
        if folder:
            engine.load(folder)
        tokenizer = tokenizers.of_training(context, config, folder)
    log = StepLog(context, start, config)
    objective = TrainingLoss(config, model, engine)
    draw = make_samples(context, config, dataset, model, tokenizer)
    validate = make_validation(context, config, dataset, TrainingLoss(config, model, model), tokenizer)
    for step, clips, waited in timed(clips_to_come):
        loss = 0.0
        for part in objective.losses(to_batch(clips, context.device, tokenizer), step):
            engine.backward(part)
            loss += part.item()
        lr, norm = engine.lr, engine.step()
        done = step + 1
        log.add(step, {"loss": loss, "grad_norm": norm, "lr": lr, "data_wait": waited, **batch_metrics(clips, dataset)})
        if done % config.validation.every == 0 or done == config.steps:
            log.note(**validate())
        if config.samples and done % config.samples.every == 0:
            draw(done)
        context.progress(done, config.steps, **log.latest)
        if done % config.checkpoint_every == 0 or done == config.steps:
            log.flush()
            context.save(done, writer(context, engine, config, tokenizer, done), log.metrics())
    log.close()


def stream(context: Context, config: TrainConfig, dataset: Data, start: int) -> Iterator[tuple[int, ClipBatch]]:
    """This rank's clips of every step to come, through Ray Data, or without it where there is no Ray."""
    plan = build_plan(config, dataset, "train")
    where = (context.rank, context.world, start, config.steps)
    if config.workers:
        # Elastic workers hold the CPUs of their data tasks themselves: how many fit is then a sum.
        found = batches(dataset, plan, *where, cpus=0.0 if config.min_workers else 0.5)
    else:
        found = local_batches(dataset, plan, *where)
    return fail_if_too_many_replaced(found, plan, context.world, config.data.max_replaced)


def prefetch_first(source: Iterator[Item]) -> Iterator[Item]:
    """The same items, of which the first is fetched from now on: the stream starts up while the model does."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="first clips")
    first = thread.submit(lambda: list(itertools.islice(source, 1)))
    thread.shutdown(wait=False)

    def items() -> Iterator[Item]:
        yield from first.result()
        yield from source

    return items()


def to_batch(clips: ClipBatch, device: str, tokenizer: Tokenizer) -> Batch:
    """Decoded clips → what the model sees, on the device."""
    pose = clips.pose
    frames = torch.from_numpy(clips.frames).to(device)
    return Batch(
        as_latents(frames) if frames.is_floating_point() else tokenizer.encode(frames),
        Conditions(
            pose=None if pose is None else torch.from_numpy(pose).to(device),
            actions=torch.from_numpy(clips.actions).to(device),
        ),
        tuple(clips.slot.tolist()),
        clips.weight,
    )


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


def make_validation(
    context: Context, config: WorldModelTraining, dataset: Data, objective: TrainingLoss, tokenizer: Tokenizer
) -> Callable[[], dict[str, float]]:
    """A function that measures the held-out loss, and the state of each layer after the clips.

    The clips are as long as the last stage's; for each other length of the curriculum also the loss on such.
    """
    stages = {stage.frames: number for number, stage in enumerate(config.data.curriculum)}
    last = config.data.curriculum[-1].frames
    clips = held_out(context, config, dataset, tokenizer)
    others = {
        frames: held_out(context, config, dataset, tokenizer, stage)
        for frames, stage in stages.items()
        if frames != last
    }
    half = last // 2 // (config.model.chunk or 1) * (config.model.chunk or 1)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        loss, memory = objective.clip_loss(clips, None)
        numbers = {"val_loss": loss.item()}
        for frames, noised in others.items():
            numbers[f"val_loss.{frames}"] = objective.clip_loss(noised, None)[0].item()
        states = state_statistics(memory) if memory is not None else {}
        for layer, statistics in states.items():
            numbers |= {f"state_{name}.{layer}": value for name, value in asdict(statistics).items()}
        if states and half:
            _, before = objective.clip_loss(clips.between(0, half).unweighted(), None)
            assert before is not None
            grown = [states[layer].std / max(early.std, 1e-9) for layer, early in state_statistics(before).items()]
            numbers["state_drift"] = sum(grown) / len(grown) - 1
        return context.mean(**numbers)

    return validate


def make_samples(
    context: Context, config: WorldModelTraining, dataset: Data, model: WorldModel, tokenizer: Tokenizer
) -> Callable[[int], None]:
    """A function that draws what the model makes at a step, where the config asks for pictures."""
    if config.samples is None:
        return lambda step: None
    from longtake.jobs.train.sample_images import make_drawing

    clips = held_out(context, config, dataset, tokenizer)
    return make_drawing(context, config.samples, clips.batch, model, tokenizer)


def held_out(
    context: Context, config: WorldModelTraining, dataset: Data, tokenizer: Tokenizer, stage: int = -1
) -> Noised:
    """This rank's clips of the `val` split, as long as a stage's: always the same, with the same noise and level."""
    plan = build_plan(config, dataset, "val", stage)
    share = rank_slice(plan.batch(0), context.rank, context.world)
    clips = load_clips(dataset, share)
    batch = to_batch(clips, context.device, tokenizer)
    b, t = batch.frames.shape[:2]
    noise = torch.stack([torch.randn(batch.frames.shape[1:], generator=seeded(0, 0, slot)) for slot in batch.slot])
    level = torch.zeros(b, t, device=context.device)
    level[:, t // 2 :] = config.validation.noise_level
    return Noised(batch, level, (level > 0) / (level > 0).sum(), noise.to(context.device))


def writer(
    context: Context, engine: Engine, config: WorldModelTraining, tokenizer: Tokenizer, step: int
) -> Callable[[Path], None]:
    """What a rank writes into a checkpoint: the engine's part, and what a reader needs beside the weights."""

    def write(folder: Path) -> None:
        engine.save(folder, {"step": step})
        if context.rank == 0:
            tokenizer.save(folder / TOKENIZER)
            described = WorldModelDescription(
                model=config.model,
                trained_frames=max(stage.frames for stage in config.data.curriculum),
                tokenizer=tokenizer.kind,
                stride=config.data.stride,
                shown_context=config.diffusion.null_context < 1,
            )
            described.write(folder)

    return write


class StepLog:
    """Rows of the `steps` table: averaged over ranks, written in parts that a replayed stretch overwrites."""

    def __init__(self, context: Context, start: int, config: TrainConfig) -> None:
        self._context = context
        self._frames = config.data.frames_per_step
        self._spent = _spent(context, start)
        self._watchers = _watchers(context, config) if config.watch and context.rank == 0 else None
        self._shown = 0
        self._rows: list[dict[str, Any]] = []
        self._first = start
        self._since = time.monotonic()
        self.latest: dict[str, float] = {}

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """One rank's numbers of a step."""
        self._show()
        now, frames = time.monotonic(), self._frames
        seconds, self._since = now - self._since, now
        numbers = self._context.mean(**numbers, step_s=seconds)
        numbers["bytes_read"] *= self._context.world
        wait = numbers.pop("data_wait") / max(numbers["step_s"], 1e-9)
        self.latest = {**numbers, "frames_per_s": frames / max(numbers["step_s"], 1e-9), "data_wait": wait}
        where = {"run": self._context.run_id, "step": step, "frames": frames}
        whole = {name: round(self.latest[name]) for name in ("clip_frames", "bytes_read")}
        worker_s = numbers["step_s"] * self._context.world
        for name, value in {"frames": frames, "worker_s": worker_s, "bytes_read": whole["bytes_read"]}.items():
            self._spent[name] += value
        self._rows.append({**where, **self.latest, **whole, "worker_s": worker_s, "val_loss": np.nan})

    def note(self, **numbers: float) -> None:
        """Add numbers to the last step's row."""
        self._rows[-1].update(numbers)
        self.latest.update(numbers)

    def metrics(self) -> dict[str, float]:
        """What a checkpoint of the last step is judged by, and what the run has cost so far."""
        return {name: value for name, value in self.latest.items() if name in ("loss", "val_loss")} | self._spent

    def flush(self) -> None:
        """Write the rows since the last flush; called before each checkpoint, so that no row is lost or doubled."""
        self._show()
        if self._watchers is not None:
            self._watchers.flush()
        if self._rows and self._context.rank == 0:
            self._context.require_lease()
            part = f"{self._context.run_id}-{self._first:08d}"
            tables.append(self._context.store, "steps", self._rows, part=part)
        self._first += len(self._rows)
        self._rows, self._shown = [], 0

    def close(self) -> None:
        """The last step is done."""
        if self._watchers is not None:
            self._watchers.close()

    def _show(self) -> None:
        """Hand the rows that are whole by now to who watches."""
        if self._watchers is not None:
            for row in self._rows[self._shown :]:
                self._watchers.add(row["step"], {name: value for name, value in row.items() if name != "step"})
        self._shown = len(self._rows)


def _spent(context: Context, start: int) -> dict[str, float]:
    """What the steps before `start` have cost, as their checkpoint says."""
    told = checkpoints.manifest(context.store, context.run_id, start)["metrics"] if start else {}
    return {name: float(told.get(name, 0)) for name in COSTS}


def _watchers(context: Context, config: TrainConfig) -> MetricLoggers:
    from longtake.jobs.train.loggers import MetricLoggers

    return MetricLoggers(config.watch, context.store, context.run_id, config.model_dump(mode="json"))


def timed(source: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, Item, float]]:
    """Each item with the seconds spent waiting for it."""
    while True:
        began = time.monotonic()
        try:
            step, item = next(source)
        except StopIteration:
            return
        yield step, item, time.monotonic() - began
