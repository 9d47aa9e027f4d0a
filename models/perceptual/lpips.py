"""LPIPS: how far apart two images look, as a distance between features of a net trained to recognise things.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018; version 0.1 with its
learned linear heads. Differentiable in both images, so it is a training loss as well as a metric. Distances of the
two nets are different measures: a result names its net.

Letters: n images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.models.perceptual.weights import load_weights

NetName = Literal["lpips_alex", "lpips_vgg"]
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
"""Of the pictures that the nets were trained on, for pixels in [-1, 1]."""
SMALLEST = {"lpips_alex": 31, "lpips_vgg": 16}
"""Pixels per side below which no feature is left in the deepest layer."""


class Lpips(nn.Module):
    """LPIPS by one net. The weights are buffers: fixed, moved by `.to()`, kept out of checkpoints."""

    def __init__(self, name: NetName) -> None:
        """Load the weights.

        Raises:
            MissingWeights: they are not installed.
        """
        super().__init__()
        self.name = name
        self.trunk = alexnet() if name == "lpips_alex" else vgg16()
        weights = load_weights(name)
        stem = "AlexNet_0" if name == "lpips_alex" else "VGG16_0"
        convolutions = [layer for layer in self.trunk if isinstance(layer, nn.Conv2d)]
        for number, layer in enumerate(convolutions):
            _freeze(layer, weights[f"{stem}.Conv_{number}.kernel"], weights[f"{stem}.Conv_{number}.bias"])
        for number in range(5):
            self.register_buffer(f"head_{number}", weights[f"NetLinLayer_{number}.Conv_0.kernel"], persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (n,) of images (n, 3, H, W) in [-1, 1]; 0 for equal ones, rarely above 1.

        Raises:
            ValueError: images smaller than the net can see.
        """
        smallest = SMALLEST[self.name]
        if min(a.shape[-2:]) < smallest:
            raise ValueError(
                f"{self.name}: images of {a.shape[-2]}x{a.shape[-1]}, at least {smallest} a side are needed"
            )
        distance = a.new_zeros(len(a))
        for number, (left, right) in enumerate(zip(self.features(a), self.features(b), strict=True)):
            gap = (_unit(left) - _unit(right)).square()
            distance = distance + F.conv2d(gap, self.get_buffer(f"head_{number}")).mean((1, 2, 3))
        return distance

    def features(self, images: Tensor) -> list[Tensor]:
        """What the net sees in images (n, 3, H, W) at its five depths."""
        x = (images - self.get_buffer("mean")) / self.get_buffer("std")
        seen = []
        for layer in self.trunk:
            x = layer(x)
            if isinstance(layer, Seen):
                seen.append(x)
        return seen


class Seen(nn.ReLU):
    """An activation whose output is compared."""


def alexnet() -> nn.Sequential:
    """The convolutions of AlexNet: all five are compared."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), Seen(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), Seen(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), Seen()),
        *(nn.Conv2d(384, 256, 3, padding=1), Seen()),
        *(nn.Conv2d(256, 256, 3, padding=1), Seen()),
    )


def vgg16() -> nn.Sequential:
    """The convolutions of VGG16: the last of each resolution is compared."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, widths in enumerate([[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]):
        layers += [nn.MaxPool2d(2)] if depth else []
        for number, width in enumerate(widths, 1):
            layers += [nn.Conv2d(channels, width, 3, padding=1), Seen() if number == len(widths) else nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def _freeze(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Give a layer fixed weights, as buffers in the place of its parameters."""
    assert layer.weight.shape == weight.shape
    for name, value in (("weight", weight), ("bias", bias)):
        delattr(layer, name)
        layer.register_buffer(name, value, persistent=False)


def _unit(features: Tensor) -> Tensor:
    """Features (n, C, H, W) at unit length per place."""
    length = features.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt()  # a root has no gradient at 0
    return features / (length + 1e-10)
