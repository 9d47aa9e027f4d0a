"""`longtake encode DATASET`: its frames as latents of an autoencoder, by Ray Data over actors that each hold it.

The result is a dataset like any other, with the same episodes, numbers and splits; `tokenizer: dataset` trains on it.
It carries what encoded it, whole. One row of Ray Data is one shard; a shard's bytes follow from the source and the
tokenizer alone, so an encoding that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from longtake.cluster import accelerators
from longtake.cluster.accelerators import AUTO, Gpus
from longtake.config import Config, build, dump
from longtake.datasets.dataset import TOKENIZER, CorruptData, Dataset, Latents, tokenizer_digest
from longtake.datasets.episode import LABEL, Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs.datasets.shard_tasks import missing_shards, reused
from longtake.jobs.latents import tokenizers
from longtake.jobs.train.config import DATASET
from longtake.models.description import PIXELS
from longtake.storage import scratch
from longtake.storage.store import Store, open_store
from longtake.tables.find import is_path
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.models.tokenizer import Tokenizer

AT_ONCE = 64  # frames that are read and encoded at a time: memory does not grow with the length of an episode
Spans = tuple[tuple[int, int], ...]


class EncodeConfig(Config):
    """What to encode with what, and under which name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the dataset to make")
    dataset: str = Field(description="whose frames are encoded")
    tokenizer: str = Field(description="an autoencoder's run id or name, or a folder's path")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the latents; float16 is half the size")
    codec: Literal["zstd", "zlib"] = Field("zstd", description="of the latents, without loss")
    chunk: int = Field(default=32, ge=1, description="frames per chunk: the least that a clip reads [frames]")
    shard_mb: float = Field(default=64, gt=0, description="size of a shard, about [MB]")
    gpus_per_actor: Gpus = Field(
        AUTO, description="auto: a card to an actor where there is one; 0: a CPU to an actor [GPUs]"
    )


@dataclass(frozen=True)
class Job:
    """All that an actor needs: the config, what the latents are of, their shape, and first and end episode of every
    shard."""

    config: EncodeConfig
    latents: Latents
    shape: tuple[int, int, int]
    shards: Spans

    @property
    def device(self) -> str:
        """Where frames are encoded."""
        return "cuda" if accelerators.least(self.config.gpus_per_actor) else "cpu"


def main(dataset: str, tokenizer: str, name: str | None, overrides: list[str], store: str, dry_run: bool) -> None:
    """The command: check, then encode; with `dry_run` print the plan and touch nothing."""
    settings = {"name": name or f"{dataset}-latents", "dataset": dataset, "tokenizer": tokenizer}
    config, where = build(EncodeConfig, settings, overrides), open_store(store)
    job = prepare(config, where)
    if dry_run:
        print(dump(config) + "\n" + describe(job, where))
        return
    latents = run(job, where)
    hint = f"--set data.dataset={latents.name} --set tokenizer=dataset"
    print(f"dataset {latents.name} is ready: longtake train CONFIG {hint} --store {where.argument}")


# --- the plan -----------------------------------------------------------------------------------------------


def prepare(config: EncodeConfig, store: Store) -> Job:
    """Look at dataset and tokenizer, and plan the shards.

    Raises:
        UserError: no such dataset or tokenizer, frames that it does not take, latents already, too little space.
    """
    dataset = store.dataset(config.dataset)
    if dataset.manifest.latents is not None:
        raise UserError(
            f"dataset: {dataset.name} holds latents already; encode {dataset.manifest.latents.dataset}, its pixels"
        )
    if config.tokenizer in (PIXELS, DATASET):
        raise UserError(f"tokenizer: {config.tokenizer} is none that encodes; name an autoencoder's run or a folder")
    height, width, channels = dataset.frame_shape
    shape = tokenizers.latent_shape(store, config.tokenizer, dataset)
    named = tokenizers.resolve(store, config.tokenizer)
    latents = Latents(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        tokenizer=named,
        step=None if is_path(named) else checkpoints.newest(store, named),
        weights=tokenizer_digest(tokenizer_files(store, named)),
        frame_shape=(height, width, channels),
    )
    lengths = dataset.episodes()["length"].to_numpy()
    frame_bytes = int(np.prod(shape)) * np.dtype(config.dtype).itemsize
    store.require_space(int(lengths.sum()) * frame_bytes)
    return Job(config, latents, shape, tuple(_packed(lengths * frame_bytes, config.shard_mb * 1e6)))


def tokenizer_files(store: Store, named: str) -> dict[str, bytes]:
    """A tokenizer as it is kept with the dataset: the bytes of its files by name."""
    with scratch.folder() as folder:
        tokenizers.read(store, named).save(folder)
        return tokenizers.files_of(folder)


def _packed(sizes: Any, limit: float) -> Iterator[tuple[int, int]]:
    """First and end of runs of episodes that make about `limit` bytes each."""
    first, filled = 0, 0.0
    for number, size in enumerate(sizes.tolist()):
        if number > first and filled + size > limit:
            yield first, number
            first, filled = number, 0.0
        filled += size
    yield first, len(sizes)


def describe(job: Job, store: Store) -> str:
    """The plan in words."""
    config, latents = job.config, job.latents
    dataset = store.dataset(config.dataset)
    height, width, channels = job.shape
    of = f", step {latents.step}" if latents.step is not None else ""
    where = f"1 CPU{accelerators.describe(config.gpus_per_actor, 1)}"
    return "\n".join(
        [
            f"dataset   {store.path('datasets', config.name)}",
            f"frames    {dataset.manifest.frames:,} of {dataset.name} ({dataset.fingerprint})",
            f"latents   {config.dtype} {height} x {width} x {channels} of tokenizer {latents.tokenizer}{of}",
            f"shards    {len(job.shards)} of about {config.shard_mb:g} MB, made by actors, each with {where}",
        ]
    )


# --- the work -----------------------------------------------------------------------------------------------


def run(job: Job, store: Store, *, cpus: int | None = None) -> Dataset:
    """Encode what is missing of the dataset and return it; a finished one is reused.

    `cpus` is the number of actors on CPUs (default: the machine's CPUs).

    Raises:
        UserError: the name belongs to another dataset, or frames of the source are damaged.
    """
    writer = _writer(job, store)
    if writer.claim():
        return reused(writer)
    keep_tokenizer(job, store)
    if missing := missing_shards(writer, len(job.shards)):
        _make(job, store, missing, cpus)
    return finish(job, store)


def keep_tokenizer(job: Job, store: Store) -> None:
    """Write the tokenizer beside the shards: actors read it there, and whoever decodes them later."""
    files = tokenizer_files(store, job.latents.tokenizer)
    if tokenizer_digest(files) != job.latents.weights:
        raise UserError(f"tokenizer: {job.latents.tokenizer} became another while it was looked at: ask again")
    for name, data in files.items():
        store.write_bytes(f"datasets/{job.config.name}/{TOKENIZER}/{name}", data)


def finish(job: Job, store: Store) -> Dataset:
    """The dataset of shards that are all there: numbered and split as the pixels are."""
    return _writer(job, store).finalize(len(job.shards), like=store.dataset(job.config.dataset))


def _writer(job: Job, store: Store) -> DatasetWriter:
    config, manifest = job.config, store.dataset(job.config.dataset).manifest
    # Of what they are made, not where: shards begun with a card go on without one.
    made_of = json.loads(config.model_dump_json(exclude={"gpus_per_actor"}))
    return DatasetWriter(
        store,
        config.name,
        recipe=made_of | {"latents": job.latents.model_dump(mode="json")},
        fps=manifest.fps,
        action_space=manifest.action_space,
        pose=manifest.pose,
        pose_kind=manifest.pose_kind or "planar",
        chunk=config.chunk,
        codec=config.codec,
        action_classes=manifest.action_classes,
        controls=manifest.controls,
    )


def _make(job: Job, store: Store, missing: list[int], cpus: int | None) -> None:
    """These shards through Ray Data, on all CPUs (or GPUs) of the Ray that is open, or of a local one."""
    import ray
    import ray.data

    from longtake.cluster.demand import Demand
    from longtake.cluster.launch import count_gpus, launch
    from longtake.jobs.display.progress_bar import bar

    setting, began = job.config.gpus_per_actor, time.monotonic()
    need = Demand(1, cpus_per_worker=1, data_cpus_per_worker=0, gpus_per_worker=accelerators.least(setting))
    with launch(need, cpus=cpus), bar(f"encode {job.config.name}", "starting Ray") as show:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = accelerators.resolve(setting, 1, count_gpus())
        job = replace(job, config=job.config.model_copy(update={"gpus_per_actor": gpus}))
        most = int(resources["GPU"] / gpus) if gpus else int(resources["CPU"])
        rows = ray.data.from_items([{"shard": shard} for shard in missing], override_num_blocks=len(missing))
        blocks = rows.map(
            _bound(job, store.uri),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, len(missing)))),
            num_cpus=1,
            num_gpus=gpus,
        )
        frames, done, of = 0, len(job.shards) - len(missing), len(job.shards)
        show(done, of)
        for row in blocks.iter_rows():
            if row["problem"]:
                raise UserError(row["problem"])
            frames, done = frames + int(row["frames"]), done + 1
            show(done, of, f"{frames / (time.monotonic() - began):.0f} frames/s")


def _bound(job: Job, store_uri: str) -> Any:
    """An Encoder without arguments: Ray would warn of those, since it may lose them before it restarts an actor."""

    class Bound(Encoder):
        def __init__(self) -> None:
            super().__init__(job, store_uri)

    return Bound


class Encoder:
    """An actor of Ray Data: loads the tokenizer once, then makes a shard of every row {shard}."""

    def __init__(self, job: Job, store_uri: str) -> None:
        import torch

        if job.device == "cpu":
            torch.set_num_threads(1)  # sums are bitwise repeatable for a fixed number
        self.job, self.store = job, open_store(store_uri)
        self.dataset = self.store.dataset(job.config.dataset)
        self.lengths = self.dataset.episodes()["length"].to_numpy()
        self.tokenizer = tokenizers.kept(self.store, job.config.name, job.latents.weights, job.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode and write one shard; returns its frames, or the problem of its source."""
        shard = int(row["shard"])
        first, end = self.job.shards[shard]
        frames = 0

        def episodes() -> Iterator[Episode]:
            nonlocal frames
            for number in range(first, end):
                episode = encoded(self.dataset, number, int(self.lengths[number]), self.tokenizer, self.job)
                frames += len(episode)
                yield episode

        try:
            _writer(self.job, self.store).write_shard(shard, episodes())
        except UserError as error:  # raised, it would come out of Ray Data as another one
            return {"frames": 0, "problem": str(error)}
        return {"frames": frames, "problem": ""}


def encoded(dataset: Dataset, number: int, length: int, tokenizer: Tokenizer, job: Job) -> Episode:
    """One episode, its frames as latents (T, h, w, c) and the rest as it was.

    Raises:
        UserError: it is damaged.
    """
    spans = [(first, min(first + AT_ONCE, length)) for first in range(0, length, AT_ONCE)]
    try:
        pieces = [_latents(dataset.read(number, *span, labels=True), tokenizer, job) for span in spans]
    except CorruptData as error:
        raise UserError(f"{error}; `longtake verify {dataset.name}` lists all damage: make it again") from error
    joined = {name: np.concatenate([piece.arrays()[name] for piece in pieces]) for name in pieces[0].arrays()}
    labels = {name: joined[LABEL + name] for name in pieces[0].labels}
    return Episode(joined["frames"], joined["actions"], joined.get("pose"), pieces[0].meta, labels)


def _latents(piece: Episode, tokenizer: Tokenizer, job: Job) -> Episode:
    import torch

    latents = tokenizer.encode(torch.tensor(piece.frames[None]).to(job.device))[0]
    return replace(piece, frames=latents.permute(0, 2, 3, 1).cpu().numpy().astype(job.config.dtype))
