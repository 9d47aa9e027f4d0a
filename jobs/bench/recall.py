"""Planted recall of places, per family: does a net of two layers learn, within minutes, to give back what it was shown?

Every clip shows `places` places, each a frame of 2 x 2 random colours at a random pose, and asks each once more, at
pure noise, in any order; each family trains from scratch, for as many steps and at each of the same learning rates, and
its best counts. `unexplained` is the share of the asked frames' variance that is missed on places never trained on, at
the end: 0 all given back, 1 nothing; (places - 1) / places is the mean of what was shown, which is no recall. Families
are the shipped ones, and the two scans with their keys of the token alone (`convolution: none`) and of pose
(`pose_keys`). Half a minute a family and rate on one core.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from longtake.config import Config
from longtake.errors import unknown
from longtake.jobs.bench.timing import Row, one_thread
from longtake.jobs.presets import families, layers_of
from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.world_model import WorldModel

Positive = Annotated[int, Field(ge=1)]
OPTIONS: dict[str, dict[str, Any]] = {
    "convolution none": {"convolution": "none"},
    "pose_keys": {"pose_keys": True},
    "convolution none, pose_keys": {"convolution": "none", "pose_keys": True},
}
CLIPS = 32
"""Of a step, and of the test."""


class Settings(Config):
    """How much is planted, and how long families learn."""

    places: Positive = 4
    steps: Positive = 400
    lrs: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [5e-3]
    only: list[str] = Field([], description="cases, such as block_ssm or delta (pose_keys); all when empty")
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("only")
    @classmethod
    def _known(cls, only: list[str]) -> list[str]:
        if wrong := [unknown("case", name, cases()) for name in only if name not in cases()]:
            raise ValueError(*wrong)
        return only


def run(settings: Settings) -> list[Row]:
    """Train every case; a row for each, with the best of its rates."""
    every = cases()
    with one_thread():
        return [
            Row(name, "unexplained", min(unexplained(every[name], settings, lr) for lr in settings.lrs), "share", 1)
            for name in settings.only or every
        ]


def cases() -> dict[str, list[LayerConfig]]:
    """Two layers of every shipped family, and of both scans with options."""
    layers_by_case = {family: [(layers := layers_of(family))[0], layers[len(layers) // 2]] for family in families()}
    for mixer in ("ssm", "delta"):
        for name, options in OPTIONS.items():
            layers_by_case[f"{mixer} ({name})"] = [LayerConfig(mixer=mixer, options=options)] * 2
    return layers_by_case


def unexplained(layers: list[LayerConfig], settings: Settings, lr: float) -> float:
    """Share of the variance of the frames asked that a trained net misses."""
    torch.manual_seed(settings.seed)
    model = WorldModel(
        ModelConfig(
            height=8, width=8, patch=4, dim=48, heads=2, window=2, d_state=32, headdim=24,
            prediction="x0", condition_input="norms_and_tokens", layers=layers,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99))
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / settings.steps)
        optimizer.zero_grad()
        missed(model, settings.places, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return float(missed(model, settings.places, 10**6 + settings.seed))


def missed(model: WorldModel, places: int, seed: int) -> Tensor:
    """Squared error on what is asked of some clips, over the variance of colours."""
    draw = torch.Generator().manual_seed(seed)
    frames, pose = clips(places, draw)
    level = torch.zeros(frames.shape[:2])
    level[:, places:] = 1
    shown = torch.cat([frames[:, :places], torch.randn(frames[:, places:].shape, generator=draw)], 1)
    prediction, _ = model(shown, level, Conditions(pose=pose))
    error: Tensor = (prediction - frames)[:, places:].square().mean()
    return error / COLOUR**2


COLOUR = 0.8
"""Colours are of this magnitude, either sign."""


def clips(places: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames (b, 2 · places, 3, 8, 8) and poses of places that are shown and then asked in any order."""
    colours = (torch.rand(CLIPS, places, 3, 2, 2, generator=draw).round() * 2 - 1) * COLOUR
    at = torch.rand(CLIPS, places, 2, generator=draw) * 4
    order, clip = torch.rand(CLIPS, places, generator=draw).argsort(1), torch.arange(CLIPS)[:, None]
    frames = torch.cat([colours, colours[clip, order]], 1).repeat_interleave(4, -1).repeat_interleave(4, -2)
    place = torch.cat([at, at[clip, order]], 1)
    return frames, torch.cat([place, torch.ones(*place.shape[:2], 1), torch.zeros(*place.shape[:2], 1)], -1)
