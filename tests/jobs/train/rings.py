"""A world small enough to learn in seconds, with something to remember: a walk along a ring of colours.

Each clip has a ring of its own. A frame shows four columns of it from where the walker stands, and the pose says where
that is; so a place seen before can be told, and one never seen cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import yaml

from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loss import Batch, TrainingLoss, seeded
from longtake.models.conditions import Conditions
from longtake.models.memory import Memory
from longtake.models.world_model import WorldModel

LENGTH = 12
CONFIG = """
name: rings
steps: 200
data: {dataset: rings, clip: forward, curriculum: [{frames: 16}]}
model:
  height: 4
  width: 4
  patch: 2
  dim: 32
  heads: 2
  window: 2
  d_state: 8
  headdim: 16
  feed_forward: 2.0
  condition_input: norms_and_tokens
  prediction: x0
  layers: [{mixer: ssm}, {mixer: ssm}]
diffusion: {clean_prefix: 1.0, clean_prefix_range: [0.5, 0.5], pure_noise: 0.7}
"""


def config_of(**changes: object) -> WorldModelTraining:
    """A config for rings; `memory=...`, `diffusion=...` and `model=...` are merged into their sections."""
    settings = yaml.safe_load(CONFIG)
    for name, value in changes.items():
        settings[name] = {**settings.get(name, {}), **value} if isinstance(value, dict) else value
    return WorldModelTraining.model_validate(settings)


def walk(clips: int, frames: int, seed: int) -> Batch:
    """Steps of -1, 0 or 1 along a ring."""
    draw = seeded(seed, 7)
    rings = torch.rand(clips, 3, LENGTH, generator=draw) * 2 - 1
    steps = torch.randint(-1, 2, (clips, frames), generator=draw)
    place = steps.cumsum(1) % LENGTH  # b t
    columns = (place[..., None] + torch.arange(4)) % LENGTH  # b t 4
    shown = torch.gather(rings[:, None].expand(-1, frames, -1, -1), 3, columns[:, :, None].expand(-1, -1, 3, -1))
    images = shown[:, :, :, None].expand(-1, -1, -1, 4, -1).contiguous()
    angle = place * (2 * math.pi / LENGTH)
    pose = torch.stack([angle.sin(), angle.cos(), angle.cos(), angle.sin()], -1)
    return Batch.whole(images, Conditions(pose=pose))


def rings(step: int) -> Batch:
    """The batch of a training step."""
    return walk(16, 16, step)


def learn(config: WorldModelTraining, batches: Callable[[int], Batch] = rings, lr: float = 5e-3) -> WorldModel:
    """Train by the objective that `longtake train` minimises."""
    torch.manual_seed(0)
    model = WorldModel(config.model)
    objective = TrainingLoss(config, model, model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / config.steps)
        optimizer.zero_grad()
        for part in objective.losses(batches(step), step):
            part.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def held_out(config: WorldModelTraining, model: WorldModel, frames: int = 16, clips: int = 128) -> tuple[float, Memory]:
    """Loss on walks never trained on, the second half at pure noise, and the memory after them."""
    batch = walk(clips, frames, seed=10**6)
    objective = TrainingLoss(config, model, model)
    noised = objective.sample_noise(batch, 0)
    level = torch.zeros_like(noised.level)
    level[:, frames // 2 :] = 1.0
    loss, memory = objective.clip_loss(noised.at(level), None)
    assert memory is not None
    return loss.item(), memory
