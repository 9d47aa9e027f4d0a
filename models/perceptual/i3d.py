"""I3D: the video net of Frechet video distances, trained on Kinetics-400.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", 2017, in the form that published FVD figures use: the logits
of its 400 classes, TensorFlow's SAME padding. All widths are those of the weights.

Letters: n clips, C channels, t frames, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.models.perceptual.weights import load_weights

SIDE = 224
"""Pixels per side that it was trained on."""
FEWEST_FRAMES = 9
"""Of fewer, not even two feature frames are left to average."""
CLASSES = 400
EPSILON = 1e-3
Triple = tuple[int, int, int]


class I3d(nn.Module):
    """The net up to its logits. The weights are buffers: fixed, moved by `.to()`, kept out of checkpoints."""

    def __init__(self) -> None:
        """Load the weights.

        Raises:
            MissingWeights: they are not installed.
        """
        super().__init__()
        weights = load_weights("i3d")
        self.trunk = nn.Sequential(
            *(Unit(weights, "Conv3d_1a_7x7", stride=2), MaxPool((1, 3, 3), (1, 2, 2))),
            *(Unit(weights, "Conv3d_2b_1x1"), Unit(weights, "Conv3d_2c_3x3"), MaxPool((1, 3, 3), (1, 2, 2))),
            *(Mixed(weights, f"Mixed_3{letter}") for letter in "bc"),
            MaxPool((3, 3, 3), (2, 2, 2)),
            *(Mixed(weights, f"Mixed_4{letter}") for letter in "bcdef"),
            MaxPool((2, 2, 2), (2, 2, 2)),
            *(Mixed(weights, f"Mixed_5{letter}") for letter in "bc"),
        )
        self.logits = Unit(weights, "Logits.Conv3d_0c_1x1")

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (n, 400), averaged over time, of clips (n, 3, t, 224, 224) in [-1, 1].

        Raises:
            ValueError: too few frames, or another size.
        """
        if clips.shape[2] < FEWEST_FRAMES or clips.shape[3:] != (SIDE, SIDE):
            raise ValueError(
                f"i3d: clips of {clips.shape[2]} frames of {clips.shape[3]}x{clips.shape[4]}; "
                f"at least {FEWEST_FRAMES} of {SIDE}x{SIDE} are needed"
            )
        pooled = F.avg_pool3d(self.trunk(clips), (2, 7, 7), stride=1)
        logits: Tensor = self.logits(pooled)
        return logits.mean((2, 3, 4))


class Unit(nn.Module):
    """A convolution; where its weights have a batch norm, that is folded in, and a ReLU follows."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, stride: int = 1) -> None:
        super().__init__()
        kernel = weights[f"params.{name}.Conv_0.kernel"]
        self.size, self.stride = kernel.shape[2:], (stride,) * 3
        self.normed = f"params.{name}.BatchNorm_0.bias" in weights
        if self.normed:
            mean, variance = (weights[f"batch_stats.{name}.BatchNorm_0.{key}"].flatten() for key in ("mean", "var"))
            scale = torch.rsqrt(variance + EPSILON)
            kernel = kernel * scale.view(-1, 1, 1, 1, 1)
            bias = weights[f"params.{name}.BatchNorm_0.bias"] - mean * scale
        else:
            bias = weights[f"params.{name}.Conv_0.bias"]
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, C, t, h, w) → features."""
        padded = _same(x, self.size, self.stride)
        x = F.conv3d(padded, self.get_buffer("kernel"), self.get_buffer("bias"), stride=self.stride)
        return F.relu(x) if self.normed else x


class MaxPool(nn.Module):
    """Max pooling with SAME padding."""

    def __init__(self, size: Triple, stride: Triple) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, C, t, h, w) → features."""
        return F.max_pool3d(_same(x, self.size, self.stride), self.size, self.stride)


class Mixed(nn.Module):
    """An Inception module: four branches side by side."""

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()

        def unit(branch: int, layer: str) -> Unit:
            return Unit(weights, f"{name}.Branch_{branch}.Conv3d_{layer}")

        self.branches = nn.ModuleList(
            [
                unit(0, "0a_1x1"),
                nn.Sequential(unit(1, "0a_1x1"), unit(1, "0b_3x3")),
                nn.Sequential(unit(2, "0a_1x1"), unit(2, "0b_3x3")),
                nn.Sequential(MaxPool((3, 3, 3), (1, 1, 1)), unit(3, "0b_1x1")),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, C, t, h, w) → features."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _same(x: Tensor, size: tuple[int, ...], stride: Triple) -> Tensor:
    """Pad (n, C, t, h, w) as TensorFlow's SAME does: evenly, the odd one behind.

    With zeros, which serve the poolings too: what they pool is never negative.
    """
    padding: list[int] = []
    for length, width, step in zip(x.shape[2:], size, stride, strict=True):
        total = max((-(-length // step) - 1) * step + width - length, 0)
        padding = [total // 2, total - total // 2, *padding]  # torch counts from the last axis
    return F.pad(x, padding)
