"""A dataset and a run small enough to be scored in tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint, ScoreCell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.models.config import ModelConfig, SamplerConfig
from longtake.models.world_model import WorldModel
from longtake.storage.store import Store
from longtake.tables import table as tables
from longtake.training import checkpoints

RUN, STEP, LENGTH = "20261121-041233-k3f9", 30, 12


SAMPLER = SamplerConfig(steps=1)


RETRIEVAL = Protocol(task="retrieval", context=4, horizon=4, episodes=4, sampler=SAMPLER, metrics=["psnr"])


REASONING = RETRIEVAL.model_copy(update={"task": "reasoning", "horizon": 6})


def episodes(count: int = 12, pose: bool = True) -> list[Episode]:
    """Walks of three cells ahead and back again, and on."""
    draw, made = np.random.default_rng(0), []
    for _ in range(count):
        ahead = np.abs(np.arange(LENGTH) - 3.0) + draw.normal(0, 0.01, LENGTH)
        walk = np.stack([ahead, np.zeros(LENGTH), np.zeros(LENGTH)], 1).astype(np.float32)
        frames = draw.integers(0, 256, (LENGTH, 16, 16, 3), dtype=np.uint8)
        made.append(Episode(frames, np.zeros((LENGTH, 2), np.float32), walk if pose else None))
    return made


def write_run(store: Store, trained_frames: int = 6, mixer: str = "ssm") -> None:
    """A checkpoint of random weights."""
    layers = [{"mixer": mixer, "spatial_block": [1, 1]}, {"mixer": mixer, "spatial_block": [1, 1]}]
    told = {"height": 16, "width": 16, "patch": 8, "dim": 16, "heads": 2, "d_state": 8, "headdim": 8, "window": 2}
    config = ModelConfig.model_validate_json(json.dumps(told | {"layers": layers}))
    row = {"run": RUN, "kind": "train", "name": "block_ssm", "status": "done", "dataset_name": "mazes", "config": "{}"}
    tables.append(store, "runs", [row], part=RUN)
    torch.manual_seed(0)
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in WorldModel(config).state_dict().items()}
    with checkpoints.writing(store, RUN, STEP) as folder:
        save_file(weights, folder / "model.safetensors")
        written = {"model": config.model_dump(mode="json"), "trained_frames": trained_frames, "tokenizer": "pixels"}
        (folder / "config.json").write_text(json.dumps(written))
    checkpoints.seal(store, RUN, STEP, 1, {})


def plan(
    store: Store, *protocols: Protocol, subject: EvaluatedCheckpoint | None = None, **more: object
) -> list[ScoreCell]:
    config = EvaluateConfig.model_validate({"protocols": list(protocols), "clips_per_cell": 2, **more})
    return [cell.payload for cell in plan_cells(config, store, [subject] if subject else find_subjects(store, RUN))]


def refused(store: Store, *protocols: Protocol, **more: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        plan(store, *protocols, **more)
    return list(caught.value.lines)
