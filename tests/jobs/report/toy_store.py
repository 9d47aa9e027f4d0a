"""A store with two scored models, a sweep and a profile, for tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.models.config import ModelConfig
from longtake.models.world_model import WorldModel
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints
from tests.jobs.toy_data import shaded_walks, write_dataset

BLOCK, WINDOW = "20261121-041233-k3f9", "20261121-042233-m2p7"


NAMES = {BLOCK: "block_ssm", WINDOW: "causal_window"}


STEP = 400


def small_model(mixer: str) -> ModelConfig:
    layers = [
        {"mixer": mixer, "spatial_block": [1, 1]},
        {"mixer": mixer, "spatial_block": [2, 2], "window": 3},
    ]
    return ModelConfig.model_validate_json(
        json.dumps({"height": 16, "width": 16, "dim": 32, "window": 2, "d_state": 8, "headdim": 16, "layers": layers})
    )


def write_run(store: Store, run: str, config: ModelConfig) -> None:
    """A finished training: its row, its steps and a checkpoint of random weights."""
    told = {"name": NAMES[run], "steps": STEP, "model": config.model_dump(mode="json")}
    row = {
        "run": run, "kind": "train", "name": NAMES[run], "status": "done", "seed": 0,
        "config": json.dumps(told), "config_hash": "abcdef012345", "dataset": "mazes",
        "code_version": "0.1.0+gabc", "hardware": "2 x <CPU> & co", "versions": json.dumps({"torch": "2.13"}),
    }  # fmt: skip
    tables.append(store, "runs", [row], part=run)
    steps = [
        {
            "run": run, "step": i, "loss": 1 / (1 + i), "val_loss": 0.5 if i % 5 == 4 else np.nan,
            "frames_per_s": 900.0, "data_wait": 0.02, "clip_frames": 8 if i < 10 else 16,
            **{f"state_{name}.layers.{layer}.ssm": 0.1 * layer + i for name in ("std", "rank") for layer in (0, 1)},
        }
        for i in range(20)
    ]  # fmt: skip
    tables.append(store, "steps", steps, part=run)
    torch.manual_seed(0)
    with checkpoints.writing(store, run, STEP) as folder:
        save_file({k: v.clone() for k, v in WorldModel(config).state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps({"model": config.model_dump(mode="json"), "trained_frames": 8, "tokenizer": "pixels"})
        )
    checkpoints.seal(store, run, STEP, 1, {})


def score_all(store: Store, protocol: Protocol) -> None:
    """Every system on every episode of the protocol, as `longtake evaluate` does, without Ray."""
    store.write_bytes(f"protocols/{protocol.hash}.json", protocol.model_dump_json().encode())
    chosen = tuple(int(e) for e in store.dataset("mazes").episodes("test").episode.head(protocol.episodes))
    systems = [(floor, NO_RUN, 0) for floor in ("copy_last", "context_mean", "nearest_pose")]
    systems += [(name + wiped, run, STEP) for run, name in NAMES.items() for wiped in ("", "/wiped")]
    for system, run, step in systems:
        cell = ScoreCell(
            store.uri, "mazes", protocol, system, run, step, "wiped" if system.endswith("wiped") else "whole", chosen
        )
        part = f"{run}-{system.replace('/', '-')}-{protocol.hash}"
        tables.append(store, "scores", score_cell(cell), part=part)


def make_protocol(task: str, dataset: str, **more: object) -> Protocol:
    plain = {
        "task": task,
        "context": 6,
        "horizon": 6,
        "episodes": 6,
        "dataset": dataset,
        "sampler": {"steps": 1},
    }
    return Protocol.model_validate_json(json.dumps({**plain, **more}))


def write_sweep(store: Store, runs: list[str]) -> str:
    """A sweep of these runs and of some that left nothing else; returns its id."""
    sweep = "20261121-050000-swee"
    tables.append(store, "runs", [{"run": sweep, "kind": "sweep", "name": "rates", "status": "done"}], part=sweep)
    rows = [
        {
            "sweep": sweep, "trial": i, "run": runs[i] if i < len(runs) else f"20261121-05000{i}-gone",
            "state": "pruned" if i in (4, 6) else "done", "objective": 0.1 + 0.02 * i, "better": "lower", "step": 8,
            "frames": 64, "seconds": 9.0 - 2 * i if i < 4 else 3.0 + i, "engine.lr": 10.0 ** -(i % 4),
            "model.window": 2 + i % 3, "model.layers": "mixed" if i % 2 else "plain",
        }
        for i in range(11)
    ]  # fmt: skip
    tables.append(store, "trials", rows, part=sweep)
    return sweep


def write_profile(store: Store, run: str) -> str:
    """A profile of the model of a run, beside a rival; returns its id."""
    profile = "20261121-060000-prof"
    (row,) = store.table("runs", where=f"run == '{run}'").config
    config = json.dumps({"name": "small", "model": json.loads(row)["model"]})
    about = {"run": profile, "kind": "profile", "name": "small", "status": "done", "config": config}
    tables.append(store, "runs", [about], part=profile)
    rows = [
        {
            "run": profile, "name": "profile", "case": f"{name}, {frames} frames", "metric": metric,
            "value": rise * frames, "unit": "s", "repetitions": 3,
        }
        for name, rise in {"block_ssm": 0.01, "causal_full": 0.03}.items()
        for frames in (4, 16, 64)
        for metric in ("frame operations", "carried total", "step time", "step memory")
    ]  # fmt: skip
    tables.append(store, "bench", rows, part=profile)
    return profile


def make_store(folder: Path) -> Store:
    """A store after two trainings and an evaluation."""
    made = open_store(folder)
    fingerprint = write_dataset(made, "mazes", shaded_walks(12), recipe={"cells": 4}, test=0.2)
    write_run(made, BLOCK, small_model("ssm"))
    write_run(made, WINDOW, small_model("none"))
    for task in ("retrieval", "rollout"):
        score_all(made, make_protocol(task, fingerprint, metrics=["psnr"]))
    return made


def scores_of(levels: dict[str, float], spread: float = 0.2, episodes: int = 24) -> pd.DataFrame:
    """PSNR rows around a level per system; episodes differ far more than systems do."""
    rows = []
    for number, (system, level) in enumerate(levels.items()):
        noise = np.random.default_rng(number).normal(0, spread, episodes)
        for episode in range(episodes):
            for frame in range(8):
                run = (
                    NO_RUN if system in ("copy_last", "context_mean", "nearest_pose") else system.removesuffix("/wiped")
                )
                value = level + 3 * (episode % 5) + noise[episode]
                rows.append((run, 1, "retrieval", system, "p", episode, frame, 2 * frame + 1, "psnr", value))
    names = [
        "run",
        "checkpoint",
        "task",
        "system",
        "protocol",
        "episode",
        "frame",
        "distance",
        "metric",
        "value",
    ]
    return pd.DataFrame(rows, columns=names)
