"""The smallest model learns: a `tiny` block-SSM overfits four real clips within two minutes on two cores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longtake.jobs.presets import size
from longtake.jobs.train.loss import Batch, TrainingLoss
from longtake.models.conditions import Conditions
from longtake.models.tokenizer import PixelTokenizer
from longtake.models.world_model import WorldModel
from longtake.motion import relative_pose
from longtake.sources.environments.doom_maze import DoomMazeConfig, generate
from tests.jobs.train.rings import config_of, learn


@pytest.fixture(scope="module")
def clips() -> Batch:
    """Sixteen frames each of four walks through four mazes."""
    pytest.importorskip("vizdoom")
    source = DoomMazeConfig(cells=4, resolution=(32, 32), steps=16, palette="calm")
    walks = [generate(source, seed) for seed in range(4)]
    pose = torch.from_numpy(np.stack([relative_pose(walk.pose) for walk in walks if walk.pose is not None]))
    frames = torch.from_numpy(np.stack([walk.frames for walk in walks]))
    return Batch.whole(PixelTokenizer().encode(frames), Conditions(pose=pose))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_tiny_model_overfits_four_real_clips(clips: Batch) -> None:
    model_config = size("tiny").model_dump() | {"prediction": "x0", "condition_input": "norms_and_tokens"}
    config = config_of(steps=300, model=model_config)

    @torch.no_grad()
    def loss(model: WorldModel) -> float:
        draws = [
            sum(part.item() for part in TrainingLoss(config, model, model).losses(clips, step)) for step in range(8)
        ]
        return float(np.mean(draws))

    torch.manual_seed(0)
    before = loss(WorldModel(config.model))
    after = loss(learn(config, batches=lambda step: clips, lr=1e-2))
    assert after <= before / 10
