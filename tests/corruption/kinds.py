"""The kinds of files in a store, where one of each lies, and how the product reads it.

Not here are files that only people read: pages, pictures, an ingest's report, and what was torn off a journal.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from longtake import compare
from longtake.config import load
from longtake.datasets.dataset import Dataset
from longtake.datasets.writer import DatasetWriter
from longtake.jobs.datasets.shard_tasks import missing_shards
from longtake.jobs.encode import command as encode
from longtake.jobs.evaluate import set_metrics
from longtake.jobs.evaluate.grid import find_subjects
from longtake.jobs.export import command as export
from longtake.jobs.ingest import command as ingest
from longtake.jobs.latents import pictures
from longtake.jobs.report.gather import find_protocol
from longtake.jobs.results import command as results
from longtake.jobs.sweep import command as sweep
from longtake.jobs.train import command as train
from longtake.jobs.train import init_weights
from longtake.jobs.train.config import TrainConfig
from longtake.jobs.train.loop import train_loop
from longtake.models.checkpoint import load_model
from longtake.storage import lease
from longtake.storage.store import Store
from longtake.training import checkpoints, progress_file
from longtake.training.context import LocalContext
from longtake.training.early_stopping import StoreChannel
from tests.corruption.base import ABOUT, ENCODE, Base, walks

Read = Callable[[Base, Store, Path], Any]
"""(base, a copy of its store, scratch folder) → what was read, to be compared."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: one of it, as a pattern of names in the store, or in the folder beside it; who reads it.

    absent: whether a result of None is right too: a file whose loss costs nothing, since it comes again at once.
    """

    name: str
    file: str
    read: Read
    absent: bool = False
    beside: bool = False


def kinds(base: Base) -> list[Kind]:
    """All of them."""
    last, cut = checkpoints.folder(base.run, 4), checkpoints.folder(base.cut, 4)
    asked = base.protocols[0].hash
    return [
        Kind("shard", "datasets/mazes/shards/00001.shard", episodes),
        Kind("index", "datasets/mazes/index.parquet", episodes),
        Kind("manifest", "datasets/mazes/manifest.json", episodes),
        Kind("manifest, collected again", "datasets/mazes/manifest.json", collected_again),
        Kind("recipe", "datasets/half/recipe.json", collected),
        Kind("index part", "datasets/half/index/00001.parquet", collected),
        Kind("refused list", "datasets/mice/refused/00000.json", ingested),
        Kind("ingest's index part", "datasets/mice/index/00000.parquet", ingested),
        Kind("latents' tokenizer", "datasets/latents/tokenizer/model.safetensors", latents),
        Kind("latents' tokenizer's config", "datasets/latents/tokenizer/config.json", latents),
        Kind("latents' index part", "datasets/latents/index/00001.parquet", encoded_again),
        *(Kind(f"{name}, evaluated", f"{last}/{name}", evaluated) for name in ("model.safetensors", "config.json")),
        Kind("complete.json, evaluated", f"{last}/complete.json", evaluated),
        Kind("weights, exported", f"{last}/model.safetensors", exported),
        Kind("weights, fork", f"{last}/model.safetensors", forked),
        Kind("weights, resume of a finished run", f"{last}/model.safetensors", resumed_finished),
        *(
            Kind(f"{name}, resume", f"{cut}/{name}", resumed)
            for name in ("model.safetensors", "optimizer.pt", "state.json", "rng-00000.json", "complete.json")
        ),
        Kind("sealed.json, resume", f"runs/{base.cut}/sealed.json", resumed),
        Kind("progress", f"runs/{base.cut}/progress.json", progress, absent=True),
        Kind("question", f"runs/{base.cut}/question.json", mailbox("question"), absent=True),
        Kind("answer", f"runs/{base.cut}/answer.json", mailbox("answer"), absent=True),
        Kind("lease", "runs/held/lease/00000003.json", held),
        Kind("runs part", f"tables/runs/{base.run}.*", table("runs")),
        Kind("steps part", f"tables/steps/{base.run}*", table("steps")),
        Kind("trials part", f"tables/trials/{base.sweep}.*", table("trials")),
        Kind("scores part", f"tables/scores/{base.run}*", summary),
        Kind("scores compacted", "tables/scores/compacted-*", summary),
        Kind("mark", f"tables/steps/.written/{base.run}*", table("steps")),
        Kind("protocol, compared", f"protocols/{asked}.json", compared),
        Kind("protocol, report", f"protocols/{asked}.json", lambda base, store, _: found_protocol(base, store)),
        Kind(
            "features", "features/some.npy", lambda _, store, __: set_metrics._read(store, "features/some.npy").tolist()
        ),
        Kind("journal", f"sweeps/{base.sweep}/study.journal", swept),
        Kind("sweep.yaml", f"sweeps/{base.sweep}/sweep.yaml", swept),
        Kind("train.yaml", f"sweeps/{base.sweep}/train.yaml", swept),
        Kind("best.yaml", f"sweeps/{base.sweep}/best.yaml", best_config),
        *(
            Kind(f"exported {name}", f"exported/{name}", begun_with_exported, beside=True)
            for name in ("model.safetensors", "config.json", "SHA256SUMS")
        ),
    ]


def episodes(base: Base, store: Store, _: Path, name: str = "mazes") -> Any:
    dataset, total = store.dataset(name), hashlib.sha256()
    for number in range(dataset.manifest.episodes):
        for array in dataset.read(number).arrays().values():
            total.update(array.tobytes())
    return total.hexdigest(), dataset.fingerprint, dataset.index.split.tolist(), dataset.manifest.model_dump_json()


def writer(store: Store, name: str) -> DatasetWriter:
    return DatasetWriter(store, name, recipe={"cells": 4, "seed": 1}, **ABOUT, test=0.2)


def collected(base: Base, store: Store, scratch: Path) -> Any:
    """A collection that was killed goes on."""
    half = writer(store, "half")
    if not half.claim():
        for shard in missing_shards(half, 3):
            half.write_shard(shard, walks(shard))
        half.finalize(3)
    return episodes(base, store, scratch, "half")


def collected_again(base: Base, store: Store, scratch: Path) -> Any:
    return writer(store, "mazes").claim(), Dataset(store, "mazes").fingerprint


def ingested(base: Base, store: Store, scratch: Path) -> Any:
    job = ingest.prepare(base.ingested())
    own = ingest._writer(job, store)
    if not own.claim():
        for shard in missing_shards(own, len(job.shards)):
            ingest.make_shard(job, store.uri, shard)
        ingest._finish(job, store, own)
    return episodes(base, store, scratch, "mice"), store.read_bytes("datasets/mice/report.json")


def latents(base: Base, store: Store, scratch: Path) -> Any:
    pictures._tokenizer.cache_clear()
    data = store.dataset("latents")
    return pictures.shown(data, data.read(0).frames).tobytes()


def encoded_again(base: Base, store: Store, scratch: Path) -> Any:
    """The shards are all there, and the index is not."""
    store.remove(["datasets/latents/manifest.json", "datasets/latents/index.parquet"])
    job = encode.prepare(ENCODE, store)
    own = encode._writer(job, store)
    own.claim()
    for shard in missing_shards(own, len(job.shards)):
        encode.Encoder(job, store.uri)({"shard": shard})
    encode.finish(job, store)
    return episodes(base, store, scratch, "latents")


def weights(folder: Path) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(load_model(folder).state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def evaluated(base: Base, store: Store, _: Path) -> Any:
    (subject,) = find_subjects(store, base.run)
    with checkpoints.opened(store, subject.run, subject.step) as folder:
        return subject, weights(folder)


def exported(base: Base, store: Store, scratch: Path) -> Any:
    export.main(base.run, str(scratch / "out"), None, store.uri)
    return weights(scratch / "out")


def begun_with_exported(base: Base, store: Store, scratch: Path) -> Any:
    """`scratch` holds the folder that was exported."""
    config = base.config(f"init.run={scratch}/exported")
    train.check(config, store)
    model = init_weights.meta_model(config).to_empty(device="cpu")
    init_weights.fill(model, config, store)
    return weights(scratch / "exported"), {name: value.tolist() for name, value in model.state_dict().items()}


def forked(base: Base, store: Store, _: Path) -> Any:
    run = train.train(base.config("steps=6"), store, resume=base.run, fork=True)
    return last_weights(store, run, 6)


def resumed_finished(base: Base, store: Store, _: Path) -> Any:
    run = train.train(base.config(), store, resume=base.run)
    return last_weights(store, run, 4)


def resumed(base: Base, store: Store, _: Path) -> Any:
    train_loop(LocalContext(store, base.cut, keep=9), base.config("steps=6"))
    return last_weights(store, base.cut, 6)


def last_weights(store: Store, run: str, step: int) -> Any:
    with checkpoints.opened(store, run, step) as folder:
        return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


def progress(base: Base, store: Store, _: Path) -> Any:
    return progress_file.read(store, base.cut)


def mailbox(name: str) -> Read:
    return lambda base, store, _: StoreChannel(store, base.cut, "s")._get(name)


def held(base: Base, store: Store, _: Path) -> Any:
    """A holder of another machine that is silent: its place is taken, whatever its file says."""
    with lease.of_run(store, "held"):
        return "taken"


def table(name: str) -> Read:
    return lambda base, store, _: store.table(name).to_csv()


def summary(base: Base, store: Store, scratch: Path) -> Any:
    results.main("scores", store.uri, columns="run,system,task,value", sort="value", out=str(scratch / "out.csv"))
    return (scratch / "out.csv").read_bytes()


def compared(base: Base, store: Store, _: Path) -> Any:
    """Two protocols are told apart by their definitions."""
    from longtake.tables.scores import differing_fields

    with contextlib.suppress(AttributeError):
        compare(store, "toy", "copy_last", where=f"protocol == {base.protocols[0].hash!r}")
    return differing_fields(store, [asked.hash for asked in base.protocols])


def found_protocol(base: Base, store: Store) -> Any:
    return find_protocol(store, base.protocols[0].hash, ["mazes"])


def swept(base: Base, store: Store, _: Path) -> Any:
    there = sweep.earlier(store, base.sweep, [])
    study = sweep.open_study(there, store)
    return there.config, there.base, study.rows()


def best_config(base: Base, store: Store, scratch: Path) -> Any:
    """A store in a bucket has its user copy the file."""
    (scratch / "best.yaml").write_bytes(store.read_bytes(f"sweeps/{base.sweep}/best.yaml"))
    return load(TrainConfig, scratch / "best.yaml", [], search=train.CONFIGS)
