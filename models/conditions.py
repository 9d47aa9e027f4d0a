"""What the model is told per frame: the agent's pose, its actions, or both, as one value and one embedding.

Letters: b clips, t frames, A action width, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.config import ModelConfig

POSE_DIM = 4
"""Pose relative to the clip's start: dx, dy (in the first frame's own axes, in cells), cos and sin of the turn."""
WAVELENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the Fourier features of dx and dy, in cells: the shortest tells neighbouring places apart."""
HARMONICS = (1, 2, 3, 4)
"""Of the heading: the fourth changes sign within 45 degrees."""


@dataclass(frozen=True)
class Conditions:
    """Per-frame conditions: `pose` (b, t, 4) and `actions` (b, t, A), fp32; None where the source has none."""

    pose: Tensor | None = None
    actions: Tensor | None = None

    def frames(self, start: int, stop: int) -> Conditions:
        """The conditions of frames start..stop-1."""
        return Conditions(
            pose=None if self.pose is None else self.pose[:, start:stop],
            actions=None if self.actions is None else self.actions[:, start:stop],
        )

    def to(self, device: torch.device | str) -> Conditions:
        """The same conditions on another device."""
        return Conditions(
            pose=None if self.pose is None else self.pose.to(device),
            actions=None if self.actions is None else self.actions.to(device),
        )


def pose_features(pose: Tensor) -> Tensor:
    """Fourier features of a relative pose: (..., 4) → (..., 2 + 4·wavelengths + 2·harmonics)."""
    place, cos, sin = pose[..., :2], pose[..., 2], pose[..., 3]
    phases = place[..., None] * (2 * math.pi / torch.tensor(WAVELENGTHS, device=pose.device))
    angle = torch.atan2(sin, cos)[..., None] * torch.tensor(HARMONICS, device=pose.device)
    return torch.cat(
        [
            place / WAVELENGTHS[-1],
            phases.sin().flatten(-2),
            phases.cos().flatten(-2),
            angle.sin(),
            angle.cos(),
        ],
        -1,
    )


class ConditionEmbedding(nn.Module):
    """Conditions → one vector per frame (b, t, D), by a small MLP per kind, summed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = {"pose": 2 + 4 * len(WAVELENGTHS) + 2 * len(HARMONICS), "actions": config.action_dim}
        kinds = ["pose", "actions"] if config.conditions == "both" else [config.conditions]
        self.embed = nn.ModuleDict({kind: _mlp(widths[kind], config.dim) for kind in kinds})

    def forward(self, conditions: Conditions) -> Tensor:
        """Embed.

        Raises:
            ValueError: a kind that the model was built for is missing.
        """
        total: Tensor | None = None
        for kind, net in self.embed.items():
            values = getattr(conditions, kind)
            if values is None:
                raise ValueError(
                    f"conditions.{kind}: missing; this model was built with conditions: {'+'.join(self.embed)}"
                )
            vector = net(pose_features(values) if kind == "pose" else values)
            total = vector if total is None else total + vector
        assert total is not None
        return total


class NoiseEmbedding(nn.Module):
    """Noise level in [0, 1], (b, t) → (b, t, D): sinusoids, then an MLP."""

    def __init__(self, dim: int, bands: int = 16) -> None:
        super().__init__()
        self.bands = bands
        self.mlp = _mlp(2 * bands, dim)

    def forward(self, noise_level: Tensor) -> Tensor:
        """Embed."""
        frequencies = math.pi * 2 ** torch.linspace(0, 6, self.bands, device=noise_level.device)
        phases = noise_level.float()[..., None] * frequencies
        vector: Tensor = self.mlp(torch.cat([phases.sin(), phases.cos()], -1))
        return vector


def _mlp(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.SiLU(), nn.Linear(width_out, width_out))
