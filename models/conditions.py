"""What the model is told per frame: the agent's pose, its actions, or both, as one value and one embedding.

Letters: b clips, t frames, A action width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from longtake.models.config import ModelConfig

POSE_DIM = 4
"""Pose relative to the clip's start: dx, dy (in the first frame's own axes, in cells), cos and sin of the turn."""
WAVELENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the Fourier features of dx and dy, in cells: the shortest tells neighbouring places apart."""
HARMONICS = (1, 2, 3, 4)
"""Of the heading: the fourth changes sign within 45 degrees."""


@dataclass(frozen=True)
class Conditions:
    """Per-frame conditions; None where the source has none.

    `pose` (b, t, 4) fp32. `actions` (b, t, A) fp32: numbers, or one-hot where they are discrete, zeros for the null
    action. `dropped` (b, t) bool: frames that are told nothing (classifier-free guidance).
    """

    pose: Tensor | None = None
    actions: Tensor | None = None
    dropped: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of frames that are told something."""
        return max((part.shape[1] for part in (self.pose, self.actions) if part is not None), default=0)

    def frames(self, start: int, stop: int) -> Conditions:
        """The conditions of frames start..stop-1."""
        return self._map(lambda values: values[:, start:stop])

    def clips(self, start: int, stop: int) -> Conditions:
        """The conditions of clips start..stop-1."""
        return self._map(lambda values: values[start:stop])

    def taken(self, frames: Tensor) -> Conditions:
        """Those of the frames (b, t) of each clip, in that order."""
        return self._map(lambda values: values[torch.arange(len(frames), device=frames.device)[:, None], frames])

    def to(self, device: torch.device | str) -> Conditions:
        """The same conditions on another device."""
        return self._map(lambda values: values.to(device))

    def drop(self, dropped: Tensor) -> Conditions:
        """The same conditions, kept from the frames where `dropped` (b, t) is true."""
        return replace(self, dropped=dropped)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        parts = (self.pose, self.actions, self.dropped)
        return Conditions(*(None if part is None else function(part) for part in parts))


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
    """Conditions → one vector per frame (b, t, D): a small MLP per kind, or a table of discrete actions, summed.

    Frames that are told nothing get a vector of their own, learned where conditions are dropped in training.
    """

    def __init__(self, config: ModelConfig, dim: int) -> None:
        super().__init__()
        kinds = ["pose", "actions"] if config.conditions == "both" else [config.conditions]
        self.embed = nn.ModuleDict()
        for kind in kinds:
            if kind == "pose":
                self.embed[kind] = _mlp(2 + 4 * len(WAVELENGTHS) + 2 * len(HARMONICS), dim)
            elif config.actions == "discrete":
                self.embed[kind] = nn.Embedding(config.action_dim + 1, dim)  # row 0: the null action
            else:
                self.embed[kind] = _mlp(config.action_dim, dim)
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, conditions: Conditions) -> Tensor:
        """Embed.

        Raises:
            ValueError: a kind that the model was built for is missing, or a discrete action is none of the model's.
        """
        total = self._sum(conditions)
        dropped = conditions.dropped
        if dropped is None:  # a gradient of zero, not none, for every rank to share
            dropped = torch.zeros(total.shape[:2], dtype=torch.bool, device=total.device)
        return torch.where(dropped[..., None], self.nothing, total)

    def _sum(self, conditions: Conditions) -> Tensor:
        vectors = []
        for kind, net in self.embed.items():
            values = getattr(conditions, kind)
            if values is None:
                raise ValueError(
                    f"conditions.{kind}: missing; this model was built with conditions: {'+'.join(self.embed)}"
                )
            if kind == "pose":
                values = pose_features(values)
            elif isinstance(net, nn.Embedding):
                values = _discrete(values, net.num_embeddings - 1)
            vectors.append(net(values))
        return torch.stack(vectors).sum(0) if len(vectors) > 1 else vectors[0]


def _discrete(actions: Tensor, count: int) -> Tensor:
    """Rows of the table for one-hot actions (b, t, count): row 0 for the null action, all zeros."""
    known = actions.device.type == "cpu"  # elsewhere a look at the values would make the device wait
    if actions.shape[-1] != count or (known and not _is_one_hot(actions)):
        raise ValueError(
            f"conditions.actions: {tuple(actions.shape)} of {actions.dtype}, but this model takes {count} discrete "
            f"actions: one-hot vectors of {count} numbers, all zeros for none"
        )
    return torch.where(actions.any(-1), actions.argmax(-1) + 1, 0)


def _is_one_hot(vectors: Tensor) -> bool:
    """Ones and zeros, at most a single one in each."""
    return bool(((vectors == 0) | (vectors == 1)).all() and (vectors.sum(-1) <= 1).all())


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
