"""Small models of every family, with every branch open: fresh ones start closed and would pass any test."""

from __future__ import annotations

from typing import Any

import torch

from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.world_model import WorldModel

CAUSAL: dict[str, dict[str, Any]] = {
    "block_ssm": {"layers": [LayerConfig(spatial_block=[1, 1]), LayerConfig(spatial_block=[2, 1], window=2)]},
    "block_ssm_chunks": {"layers": [LayerConfig(spatial_block=[2, 2]), LayerConfig()], "chunk": 3},
    "block_ssm_convolution": {"layers": [LayerConfig(local="convolution"), LayerConfig(local="none")]},
    "block_ssm_shared": {"layers": [LayerConfig(), LayerConfig(spatial_block=[1, 2])], "share_local": True},
    "block_delta": {
        "layers": [LayerConfig(mixer="delta", spatial_block=[1, 1]), LayerConfig(mixer="delta", spatial_block=[2, 1])]
    },
    "blocks_1": {"layers": [LayerConfig(), LayerConfig()]},
    "mamba": {"layers": [LayerConfig(spatial_block="frame", local="none")] * 2},
    "mamba_local": {"layers": [LayerConfig(spatial_block="frame")] * 2},
    "causal_window": {"layers": [LayerConfig(mixer="none"), LayerConfig(mixer="none", window=1)]},
    "causal_full": {"layers": [LayerConfig(mixer="attention", local="none")] * 2},
    "causal_full_axial": {"layers": [LayerConfig(mixer="attention", local="none")] * 2, "rotary": "axial"},
}
SIZES = {"height": 8, "width": 8, "patch": 4, "dim": 16, "heads": 2, "d_state": 8, "headdim": 8, "window": 3}


def make(family: str = "block_ssm", **changes: Any) -> WorldModel:
    """A model of a family, 2 x 2 tokens a frame."""
    return build(ModelConfig(**{**SIZES, **CAUSAL[family], **changes}))


def build(config: ModelConfig) -> WorldModel:
    """A model whose closed branches are opened."""
    torch.manual_seed(0)
    model = WorldModel(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(frames: int, seed: int = 1, clips: int = 2) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    """Frames, noise levels and poses."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(clips, frames, 3, 8, 8, generator=draw)
    level = torch.rand(clips, frames, generator=draw)
    return x, level, Conditions(pose=torch.randn(clips, frames, 4, generator=draw))
