"""Latents end to end, in this process: an autoencoder is trained, a world model on its latents, and it is scored."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtake.config import load
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.jobs.train import command as train
from longtake.jobs.train.config import AutoencoderTraining, TrainConfig, WorldModelTraining
from longtake.jobs.train.loop import train_loop
from longtake.models.config import SamplerConfig
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from longtake.training.context import LocalContext
from tests.jobs.toy_data import write_dataset

AUTOENCODER = """
name: squeeze
steps: 100
workers: 0
checkpoint_every: 20
data: {dataset: mazes, frames_per_step: 16}
model: {kind: autoencoder, height: 16, width: 16, downsample: 4, widths: [16, 16]}
engine: {backend: torch, warmup: 5, lr: 5.0e-3}
validation: {every: 20, clips: 4}
"""
WORLD = """
name: inner
steps: 2
workers: 0
tokenizer: squeeze
data: {dataset: mazes, frames_per_step: 16, curriculum: [{frames: 8}], base_segment: 4}
model:
  {height: 4, width: 4, channels: 4, clip: null, patch: 1, dim: 16, heads: 2, window: 2, d_state: 4, headdim: 8,
  layers: [{mixer: ssm, spatial_block: [2, 2]}]}
engine: {backend: torch, warmup: 1}
validation: {every: 2, clips: 2}
"""


@dataclass(frozen=True)
class Place:
    """A folder with a store, where `squeeze` is trained, and the two configs."""

    folder: Path
    autoencoder: str

    @property
    def store(self) -> Store:
        return open_store(self.folder / "store")

    def config(self, name: str, *overrides: str) -> TrainConfig:
        return load(TrainConfig, self.folder / f"{name}.yaml", list(overrides), search=train.CONFIGS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("latents")
    store = open_store(folder / "store")
    random = np.random.default_rng(0)
    walks = np.cumsum(random.normal(0, 0.3, (20, 16, 3)), 1).astype(np.float32)
    colors = 128 + 60 * walks[:, :, None, None] + 30 * np.linspace(-1, 1, 16)[None, None, :, None, None]
    frames = np.clip(colors + np.zeros((20, 16, 16, 16, 3)), 0, 255).astype(np.uint8)
    actions = random.normal(size=(20, 16, 2)).astype(np.float32)
    episodes = [Episode(f, a, w) for f, a, w in zip(frames, actions, walks, strict=True)]
    write_dataset(store, "mazes", episodes, test=0.2)
    (folder / "squeeze.yaml").write_text(AUTOENCODER)
    (folder / "inner.yaml").write_text(WORLD)
    config = load(TrainConfig, folder / "squeeze.yaml", search=train.CONFIGS)
    return Place(folder, train.train(config, store))


def test_the_kind_of_the_model_tells_the_kind_of_training(place: Place) -> None:
    assert isinstance(place.config("squeeze"), AutoencoderTraining)
    assert isinstance(place.config("inner"), WorldModelTraining)
    with pytest.raises(UserError, match=r"unknown model.kind 'autoencode' \(did you mean autoencoder\?\)"):
        place.config("squeeze", "model.kind=autoencode")
    with pytest.raises(UserError, match="diffusion: unknown key"):
        place.config("squeeze", "diffusion={}")
    with pytest.raises(UserError, match=r"data.clip: got \"palindrome\", allowed: forward"):
        place.config("squeeze", "data.clip=palindrome")


def test_training_tells_psnr_and_it_rises(place: Place) -> None:
    steps = place.store.table("steps", where=f"run == '{place.autoencoder}'").set_index("step")
    told = steps.val_psnr.dropna()
    assert list(told.index) == [19, 39, 59, 79, 99]
    assert told[99] > told[19] + 3
    assert told[99] > 22


def test_a_killed_autoencoder_ends_with_the_same_weights(place: Place) -> None:
    class Killed(Exception):
        pass

    class DyingContext(LocalContext):
        def save(self, step: int, *arguments: object, **options: object) -> None:
            super().save(step, *arguments, **options)  # type: ignore[arg-type]
            if step == 2:
                self.finish()
                raise Killed

    config = place.config("squeeze", "steps=4", "checkpoint_every=2")
    assert isinstance(config, AutoencoderTraining)
    train_loop(LocalContext(place.store, "straight"), config)
    with pytest.raises(Killed):
        train_loop(DyingContext(place.store, "killed"), config)
    train_loop(LocalContext(place.store, "killed"), config)
    weights = []
    for run in ("straight", "killed"):
        with checkpoints.opened(place.store, run, 4) as folder:
            weights.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["tokenizer=squeez"], "unknown tokenizer 'squeez' (did you mean squeeze?)"),
        (["tokenizer=./nowhere"], "tokenizer: ./nowhere is no folder with a config.json"),
        (["model.height=16"], "model.height: 16, but latents of tokenizer squeeze have 4: set model.height=4"),
        (["model.channels=3"], "model.channels: 3, but latents of tokenizer squeeze have 4: set model.channels=4"),
        (["model.clip=1.0"], "model.clip: 1 would cut latents of tokenizer squeeze, of unit variance"),
        (["perceptual={}"], "perceptual: compares pixels, but this model lives on latents of squeeze"),
        (["tokenizer=pixels"], "model.height: 4, but frames of mazes have 16: set model.height=16"),
    ],
)
def test_what_does_not_fit_the_latents_is_refused(place: Place, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        train.check(place.config("inner", *overrides), place.store)
    assert told in str(caught.value)


def test_frames_of_another_size_are_refused(place: Place) -> None:
    with pytest.raises(UserError, match="model.width: 32, but frames of mazes have 16: set model.width=16"):
        train.check(place.config("squeeze", "model.width=32"), place.store)


def test_a_world_model_on_latents_needs_nothing_but_its_checkpoint(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder / "store", tmp_path / "store")
    store = open_store(tmp_path / "store")
    run = train.train(place.config("inner"), store)
    assert place.autoencoder in store.table("runs").set_index("run").config[run]  # a name may mean another run tomorrow
    shutil.rmtree(tmp_path / "store" / "runs" / place.autoencoder)
    (subject,) = find_subjects(store, "latest")
    assert (subject.run, subject.latents) == (run, True)
    protocol = Protocol(task="retrieval", context=8, horizon=8, episodes=2, sampler=SamplerConfig(steps=1))
    cells = plan_cells(EvaluateConfig(protocols=[protocol]), store, [subject])
    rows = [row for cell in cells for row in score_cell(cell.payload)]
    values = {s: [r["value"] for r in rows if (r["system"], r["metric"]) == (s, "psnr")] for s in set_of(rows)}
    assert {"inner", "inner/wiped", "inner/reconstruction"} <= set(values)
    assert {len(v) for v in values.values()} == {2 * 7}  # of two clips; the first frame back had only to be copied
    assert np.mean(values["inner/reconstruction"]) > np.mean(values["inner"]) + 4


def set_of(rows: list[dict[str, object]]) -> set[str]:
    return {str(row["system"]) for row in rows}
