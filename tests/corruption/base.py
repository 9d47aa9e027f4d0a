"""A store with one of everything, made in this process, without Ray, in some seconds."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtake.config import build, load
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.evals.protocol import Protocol
from longtake.jobs.encode import command as encode
from longtake.jobs.encode.command import EncodeConfig, Encoder
from longtake.jobs.evaluate import set_metrics
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.export import command as export
from longtake.jobs.ingest import command as ingest
from longtake.jobs.ingest.command import IngestConfig
from longtake.jobs.sweep import check as sweep_check
from longtake.jobs.sweep import command as sweep
from longtake.jobs.sweep.config import Sweep, SweepConfig, new
from longtake.jobs.train import command as train
from longtake.jobs.train.config import TrainConfig
from longtake.jobs.train.loop import train_loop
from longtake.models.config import SamplerConfig
from longtake.storage import lease
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.compaction import compact
from longtake.training.context import LocalContext
from longtake.training.early_stopping import StoreChannel
from tests.longtake.sources.formats import foreign_files

ENGINE = "engine: {backend: torch, warmup: 1, lr: 1.0e-2}\nvalidation: {every: 2, clips: 2}\n"
SQUEEZE = f"""
name: squeeze
steps: 2
workers: 0
checkpoint_every: 2
data: {{dataset: mazes, frames_per_step: 16}}
model: {{kind: autoencoder, height: 16, width: 16, downsample: 4, widths: [8, 8]}}
{ENGINE}"""
TOY = f"""
name: toy
steps: 4
workers: 0
keep: 9
checkpoint_every: 2
data: {{dataset: mazes, frames_per_step: 16, curriculum: [{{frames: 8}}], base_segment: 4}}
model: {{height: 16, width: 16, dim: 16, heads: 2, window: 2, d_state: 4, headdim: 8,
  layers: [{{mixer: ssm, spatial_block: [1, 1]}}]}}
{ENGINE}"""
SWEEP = """
name: toys
train: %s
space: {engine.lr: {choice: {good: 1.0e-2, bad: 1.0e-9}}, model.window: {integer: [1, 3]}}
trials: 3
sampling: {startup: 2}
objective: {column: val_loss}
"""
ABOUT: dict[str, Any] = {"fps": 10.0, "action_space": {"turn": "degrees"}, "pose": ["x", "y", "yaw"]}
ENCODE = EncodeConfig(name="latents", dataset="mazes", tokenizer="squeeze", shard_mb=0.02)


@dataclass(frozen=True)
class Base:
    """Where the store is, and the names of what is in it. `cut`: a run that was ended between two checkpoints."""

    folder: Path
    run: str
    sweep: str
    protocols: tuple[Protocol, Protocol]
    cut: str = "cut"

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    def config(self, *overrides: str) -> Any:
        """The training of `run`."""
        return load(TrainConfig, self.folder / "toy.yaml", list(overrides), search=train.CONFIGS)

    def ingested(self) -> IngestConfig:
        """Episodes of others, some of which are refused."""
        about = {"name": "mice", "path": str(self.folder / "others"), "source": {"kind": "memory-maze"}}
        return build(IngestConfig, about, ["shard_mb=0.02"])


class Cut(Exception):
    """The run is ended."""


class CutContext(LocalContext):
    """Ends after the fifth step, of which the fourth has its checkpoint."""

    def progress(self, step: int, of: int, **numbers: float) -> None:
        if step == 5:
            self.finish()
            raise Cut


def make(folder: Path) -> Base:
    """All of it."""
    for name, text in (("squeeze", SQUEEZE), ("toy", TOY), ("sweep", SWEEP % (folder / "toy.yaml"))):
        (folder / f"{name}.yaml").write_text(text)
    store = open_store(folder / "store")
    write_shards(store, "mazes").finalize(3)
    write_shards(store, "half")
    train.train(load(TrainConfig, folder / "squeeze.yaml", [], search=train.CONFIGS), store)
    job = encode.prepare(ENCODE, store)
    encode._writer(job, store).claim()
    encode.keep_tokenizer(job, store)
    for shard in range(len(job.shards)):
        Encoder(job, store.uri)({"shard": shard})
    encode.finish(job, store)
    config = load(TrainConfig, folder / "toy.yaml", [], search=train.CONFIGS)
    run = train.train(config, store)
    base = Base(folder, run, make_sweep(folder, store).id, (protocol(4), protocol(6)))
    with contextlib.suppress(Cut):
        train_loop(CutContext(store, base.cut, keep=9), base.config("steps=6"))
    for name in ("0", "1", "2", "3", "4", "5", "6"):
        foreign_files.write(folder / f"others/{name}.npz", foreign_files.npz(**foreign_files.memory_maze(int(name))))
    (folder / "others/1.npz").write_bytes(b"nothing")
    half_ingested(base, store)
    score(base, store)
    export.main(run, str(folder / "exported"), None, store.uri)
    leftovers(base, store)
    return base


def write_shards(store: Store, name: str) -> DatasetWriter:
    """Three shards of seven walks; nothing is numbered yet."""
    writer = DatasetWriter(store, name, recipe={"cells": 4, "seed": 1}, **ABOUT, test=0.2)
    writer.claim()
    for shard in range(3):
        writer.write_shard(shard, walks(shard))
    return writer


def walks(shard: int) -> list[Episode]:
    """The episodes of a shard."""
    draw, episodes = np.random.default_rng(shard), []
    for _ in range(7):
        walk = np.cumsum(draw.normal(0, 0.3, (12, 3)), 0).astype(np.float32)
        shade = np.clip(128 + 60 * walk[:, None, None, :] + draw.normal(0, 20, (12, 16, 16, 3)), 0, 255)
        episodes.append(Episode(shade.astype(np.uint8), draw.normal(size=(12, 2)).astype(np.float32), walk))
    return episodes


def protocol(horizon: int) -> Protocol:
    """A small question about `mazes`."""
    sampler = SamplerConfig(steps=1)
    return Protocol(task="retrieval", context=6, horizon=horizon, episodes=4, sampler=sampler, metrics=["psnr"])


def make_sweep(folder: Path, store: Store) -> Sweep:
    """Three trials that nobody has run, and the best of them."""
    made = sweep_check.check(new(load(SweepConfig, folder / "sweep.yaml", [])), store)
    with lease.of_sweep(store, made.id) as held, sweep._record(made, store, held):
        study = sweep.open_study(made, store, held)
        for number in range(3):
            study.ask()
            for step in (2, 4):
                study.report(number, step, 1.0 + number - step / 8, frames=step, seconds=step)
            study.finish(number)
        sweep.finish(made, store, study)
    return made


def half_ingested(base: Base, store: Store) -> None:
    """An ingest that was killed before its index was written."""
    job = ingest.prepare(base.ingested())
    ingest._writer(job, store).claim()
    for shard in range(len(job.shards)):
        ingest.make_shard(job, store.uri, shard)


def score(base: Base, store: Store) -> None:
    """Scores of a model and a floor under two protocols, the first one's compacted; and features of some clips."""
    for asked in base.protocols:
        store.write_bytes(f"protocols/{asked.hash}.json", asked.model_dump_json(indent=1).encode())
        chosen = tuple(int(episode) for episode in store.dataset("mazes").episodes("test").episode.head(4))
        for system, run, step in (("toy", base.run, 4), ("copy_last", "none", 0)):
            cell = ScoreCell(store.uri, "mazes", asked, system, run, step, "whole", chosen)
            tables.append(store, "scores", score_cell(cell), part=cell.name(cell.share))
        compact(store, "scores") if asked is base.protocols[0] else None
    set_metrics._write(store, "features/some.npy", np.arange(12.0).reshape(3, 4))


def leftovers(base: Base, store: Store) -> None:
    """What drivers that were killed leave: how far a run was, a question, a lease."""
    from longtake.training import progress_file

    progress_file.write(store, base.cut, progress_file.Progress(3, 4, {"loss": 0.5}, "s"))
    channel = StoreChannel(store, base.cut, "s")
    channel._put("question", {"session": "s", "step": 2, "numbers": {"loss": 1.0}})
    channel._put("answer", {"session": "s", "step": 2, "go_on": True})
    holder = lease.Holder(secret="x", host="elsewhere", pid=1, kernel="k", since="then")
    store.write_bytes("runs/held/lease/00000003.json", json.dumps(vars(holder)).encode())
