"""A tiny trained world without a training: a model with open branches, in a folder as `export` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from longtake.datasets.controls import Control, Controls, Motion
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.models.exported import write_sums
from longtake.storage.store import Store
from longtake.tables import table as tables
from longtake.training import checkpoints
from longtake.worlds.about import About
from tests.models.families import make

CONTROLS = Controls(
    controls=(
        Control(name="forward", keys=("ArrowUp", "w"), action=(1, 0)),
        Control(name="turn left", keys=("ArrowLeft", "a"), action=(0, 1)),
        Control(name="turn right", keys=("ArrowRight", "d"), action=(0, -1)),
    ),
    bounds=((0, 1), (-1, 1)),
    motion=Motion(gain=((0.5, 0), (0, 0), (0, 0.5))),
)
ABOUT = About(
    name="tiny", dataset="mazes", frame_shape=(8, 8, 3), fps=5, controls=CONTROLS,
    pose=["x", "y", "yaw"],
)  # fmt: skip


FROM = {"run": "r", "name": "tiny", "dataset_name": "mazes", "code_version": "abc", "step": 1}


def exported(folder: Path, family: str = "block_ssm", about: About = ABOUT, trained: int = 12, **changes: Any) -> str:
    """The folder's name."""
    folder.mkdir(parents=True)
    model = make(family, **changes)
    save_file(model.state_dict(), folder / "model.safetensors")
    written = {"model": model.config.model_dump(mode="json"), "trained_frames": trained, "tokenizer": "pixels"}
    written |= {"stride": about.stride, "world": about.model_dump(mode="json"), "from": FROM}
    (folder / "config.json").write_text(json.dumps(written))
    write_sums(folder)
    return str(folder)


def seen(frames: int, streams: int | None = None, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Pictures and poses."""
    rng = np.random.default_rng(seed)
    lead = () if streams is None else (streams,)
    return rng.integers(0, 256, (*lead, frames, 8, 8, 3), dtype=np.uint8), rng.normal(size=(*lead, frames, 3))


def planted(store: Store, run: str, name: str = "block_ssm", dataset: str = "mazes") -> None:
    """A dataset of twelve walks, and a run on it whose only checkpoint, of step 30, has random weights."""
    if not store.exists(f"datasets/{dataset}/manifest.json"):
        told = CONTROLS.model_copy(update={"motion": None})
        space, names = {"forward": "0 or 1", "turn": "-1 to 1"}, ["x", "y", "yaw"]
        writer = DatasetWriter(store, dataset, recipe={}, fps=5, action_space=space, pose=names, controls=told)
        writer.claim()
        writer.write_shard(0, [walk(seed) for seed in range(12)])
        writer.finalize(1)
    model = make("block_ssm", height=16, width=16)
    row = {"run": run, "kind": "train", "name": name, "status": "done", "dataset_name": dataset, "config": "steps: 30"}
    tables.append(store, "runs", [row | {"dataset": "f" * 16, "code_version": "abc"}], part=run)
    with checkpoints.writing(store, run, 30) as folder:
        save_file(model.state_dict(), folder / "model.safetensors")
        written = {"model": model.config.model_dump(mode="json"), "trained_frames": 24, "tokenizer": "pixels"}
        (folder / "config.json").write_text(json.dumps(written))
    checkpoints.seal(store, run, 30, 1, {})


def walk(seed: int, frames: int = 24) -> Episode:
    """Pictures that follow from where one is, moved by CONTROLS."""
    rng = np.random.default_rng(seed)
    actions = np.stack([rng.integers(0, 2, frames), rng.integers(-1, 2, frames)], 1).astype(np.float32)
    actions[0], pose = 0, np.zeros((frames, 3))
    assert CONTROLS.motion is not None
    for t in range(1, frames):
        pose[t] = CONTROLS.motion.moved(pose[None, max(0, t - 2)], pose[None, t - 1], actions[None, t])[0]
    pictures = rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
    return Episode(pictures, actions, pose.astype(np.float32), {"seed": seed})
