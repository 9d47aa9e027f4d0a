"""A small convolutional autoencoder of single frames; its latents come out with mean 0 and variance 1 per channel.

Letters: n frames, C channels, H·W pixels, c·h·w numbers of a latent.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.models.config import GROUPS, AutoencoderConfig

SHARE = 0.05
"""What one batch counts for in the running mean and variance of latents, once there were enough of them."""
FIRST_LOG_VARIANCE = -6.0
"""Of the latents' noise before training: little, so that the decoder has something to learn from at once."""


class Autoencoder(nn.Module):
    """Frames → latents → frames.

    A training call measures the latents as it goes (buffers, saved with the weights); `encode` and `decode` shift and
    scale by what was measured. In training itself latents are as they come.
    """

    latent_mean: Tensor
    latent_square: Tensor
    measured: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths, latent = config.widths, config.latent_channels
        inwards: list[nn.Module] = []
        for before, width in itertools.pairwise([config.channels, *widths]):
            inwards += [nn.Conv2d(before, width, 4, stride=2, padding=1), *_blocks(width, config.blocks)]
        head = nn.Conv2d(widths[-1], 2 * latent, 3, padding=1)
        assert head.bias is not None
        nn.init.constant_(head.bias[latent:], FIRST_LOG_VARIANCE)
        self.encoder = nn.Sequential(*inwards, head)
        outwards: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1)]
        for width, after in itertools.pairwise([*reversed(widths), widths[0]]):
            outwards += [*_blocks(width, config.blocks), nn.Conv2d(width, 4 * after, 3, padding=1), nn.PixelShuffle(2)]
        last = nn.Conv2d(widths[0], config.channels, 3, padding=1)
        self.decoder = nn.Sequential(*outwards, nn.SiLU(), last)
        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_square", torch.ones(latent))
        self.register_buffer("measured", torch.zeros((), dtype=torch.int64))

    def forward(self, frames: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct.

        Args:
            frames: (n, C, H, W) in [-1, 1].
            noise: unit normal (n, c, h, w), scaled by the encoder's own variance (KL-regularised training); None: none.

        Returns:
            Frames (n, C, H, W), and the mean and log-variance of the latents (n, c, h, w) before they are scaled.
        """
        mean, log_variance = self._moments(frames)
        if self.training:
            self._measure(mean.detach().float())
        latent = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        return self.decoder(latent), mean, log_variance

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (n, C, H, W) in [-1, 1] → latents (n, c, h, w) of about unit variance.

        Raises:
            ValueError: frames of another shape than the config's.
        """
        config = self.config
        if frames.shape[1:] != (config.channels, config.height, config.width):
            raise ValueError(
                f"frames: {tuple(frames.shape[1:])}, this autoencoder takes "
                f"{(config.channels, config.height, config.width)}"
            )
        shift, scale = self._unit()
        return (self._moments(frames)[0] - shift) / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as `encode` makes them (n, c, h, w) → frames (n, C, H, W), in [-1, 1] or a little beyond."""
        shift, scale = self._unit()
        frames: Tensor = self.decoder(latents * scale + shift)
        return frames

    def _moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(frames).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def _unit(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, (c, 1, 1) each."""
        variance = (self.latent_square - self.latent_mean.square()).clamp(min=1e-12)
        return self.latent_mean[:, None, None], variance.sqrt()[:, None, None]

    def _measure(self, latents: Tensor) -> None:
        self.measured += 1
        share = torch.clamp(1 / self.measured, min=SHARE)
        self.latent_mean.lerp_(latents.mean((0, 2, 3)), share)
        self.latent_square.lerp_(latents.square().mean((0, 2, 3)), share)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU, convolution; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convolutions[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.convolutions[1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x (n, width, h, w)."""
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(F.silu(norm(y)))
        return x + y


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(count)]
