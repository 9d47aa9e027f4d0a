"""A store as it looks after a while: datasets, runs that build on each other, a sweep with a trial."""

from __future__ import annotations

import numpy as np

from longtake.config import Config
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.storage.store import Store
from longtake.tables import table as tables
from longtake.tables.run_record import RunRecord


class Data(Config):
    dataset: str | dict[str, float] = "mazes"


class Settings(Config):
    data: Data = Data()
    tokenizer: str = "pixels"
    init: dict[str, str] | None = None


def add_dataset(store: Store, name: str) -> None:
    writer = DatasetWriter(store, name, recipe={}, fps=10.0, action_space={"turn": "degrees"}, pose=None, test=0.2)
    frames = np.random.default_rng(0).integers(0, 255, (10, 4, 8, 8, 3), dtype=np.uint8)
    actions = np.zeros((10, 4, 1), np.float32)
    writer.write_shard(0, [Episode(f, a, None) for f, a in zip(frames, actions, strict=True)])
    writer.finalize(1)


def add_run(store: Store, run: str, name: str, config: Settings, kind: str = "train", status: str = "done") -> None:
    record = RunRecord.start(store, run, kind=kind, name=name, config=config, dataset_name=str(config.data.dataset))
    store.write_bytes(f"runs/{run}/checkpoints/step-000002/model.safetensors", bytes(5000))
    store.write_bytes(f"runs/{run}/checkpoints/step-000002/complete.json", b"{}")
    record.finish(status, "the disk is full" if status == "failed" else "")  # type: ignore[arg-type]


def fill(store: Store) -> Store:
    """Two datasets; runs a1, a2 (on a mixture) and b1 (whose tokenizer is t1); a sweep s1 with the trial r1."""
    elsewhere = Settings(data=Data(dataset="other"))
    add_dataset(store, "mazes")
    add_dataset(store, "halls")
    add_run(store, "a1", "base", Settings())
    add_run(store, "a2", "both", Settings(data=Data(dataset={"mazes": 1.0, "halls": 2.0})))
    add_run(store, "t1", "coder", elsewhere, kind="autoencoder")
    add_run(store, "b1", "latent", Settings(data=Data(dataset="other"), tokenizer="t1"))
    add_run(store, "s1", "search", elsewhere, kind="sweep")
    add_run(store, "r1", "search-000", elsewhere, status="failed")
    store.write_bytes("sweeps/s1/study.journal", b"x" * 100)
    tables.append(store, "trials", [{"sweep": "s1", "trial": 0, "run": "r1", "state": "done", "final": 3.0}], "s1-0")
    return store
