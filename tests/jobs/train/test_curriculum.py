"""Clips that grow from 16 to 64 to 256 frames: one engine, one iterator, as many frames a step, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.config import load
from longtake.jobs.bench.train import written
from longtake.jobs.train import command as train
from longtake.jobs.train import init_weights
from longtake.jobs.train import loop as train_loop
from longtake.jobs.train.config import WorldModelTraining
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from tests.jobs.toy_model import toy_model
from tests.jobs.train.toy import run

GROWING = """
name: growing
steps: 6
workers: 0
checkpoint_every: 1
data:
  dataset: walks
  frames_per_step: 256
  curriculum: [{until: 2, frames: 16}, {until: 4, frames: 64}, {frames: 256}]
  base_segment: 8
temporal_block: 64
engine: {backend: torch, warmup: 1, lr: 1.0e-2}
validation: {every: 6, clips: 1}
""" + toy_model(1)
STEPS, LENGTHS = 6, [16, 16, 64, 64, 256, 256]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With walks long enough, and an undisturbed run `straight`."""
    store = open_store(tmp_path_factory.mktemp("curriculum"))
    written(store, "walks", edge=16, frames=128)
    return store


@pytest.fixture(scope="module")
def config(store: Store, tmp_path_factory: pytest.TempPathFactory) -> WorldModelTraining:
    path = tmp_path_factory.mktemp("config") / "growing.yaml"
    path.write_text(GROWING)
    config = load(WorldModelTraining, path, [], search=Path())
    train.check(config, store)
    return config


def test_a_growing_clip_rebuilds_nothing_and_resumes_anywhere(
    store: Store, config: WorldModelTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(module: Any, name: str) -> Any:
        real = getattr(module, name)

        def make(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            return real(*arguments, **options)

        return make

    for module, name in ((train_loop, "Engine"), (init_weights, "new_model"), (train_loop, "local_batches")):
        monkeypatch.setattr(module, name, counted(module, name))
    straight = run(store, "straight", config, device="cpu")
    assert sorted(made) == ["Engine", "local_batches", "new_model"]
    rows = store.table("steps", where="run == 'straight'").sort_values("step")
    assert list(rows.clip_frames) == LENGTHS and set(rows.frames) == {256}
    assert rows[["val_loss", "val_loss.16", "val_loss.64"]].iloc[-1].notna().all()
    for cut in range(1, STEPS):  # inside each stage, and on both borders
        checkpoints.copy(store, "straight", cut, f"cut-{cut}")
        again = run(store, f"cut-{cut}", config, device="cpu")
        assert all(torch.equal(again[name], tensor) for name, tensor in straight.items()), cut
        later = store.table("steps", where=f"run == 'cut-{cut}'").sort_values("step")
        assert list(later.loss) == list(rows.loss[rows.step >= cut])
