"""Diffusion over video with one noise level per frame (diffusion forcing), cosine schedule, and a DDIM sampler.

Letters: b clips, t frames. Noise level u in [0, 1]: x_u = cos(πu/2) x + sin(πu/2) ε.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longtake.models.config import DiffusionConfig


def signal_and_noise(noise_level: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine schedule: the weights of signal and noise, (b, t) → two of (b, t, 1, 1, 1)."""
    angle = noise_level.float() * (math.pi / 2)
    return angle.cos()[..., None, None, None], angle.sin()[..., None, None, None]


def add_noise(clean: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """Noise frames (b, t, C, H, W), each to its own level (b, t)."""
    signal, sigma = signal_and_noise(noise_level)
    return signal * clean + sigma * noise


def target(kind: str, clean: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """What the net is asked for: the clean frame (`x0`) or the velocity (`v`; Salimans and Ho, 2022)."""
    if kind == "x0":
        return clean
    signal, sigma = signal_and_noise(noise_level)
    return signal * noise - sigma * clean


def to_clean(kind: str, prediction: Tensor, noised: Tensor, noise_level: Tensor) -> Tensor:
    """The clean frame that a prediction stands for."""
    if kind == "x0":
        return prediction
    signal, sigma = signal_and_noise(noise_level)
    return signal * noised - sigma * prediction


def ddim_step(clean: Tensor, noised: Tensor, noise_level: Tensor, next_level: Tensor) -> Tensor:
    """Deterministic DDIM step (Song et al., 2021) from one noise level to a lower one; the first must be above 0."""
    signal, sigma = signal_and_noise(noise_level)
    noise = (noised - signal * clean) / sigma
    return add_noise(clean, noise, next_level)


def sampler_levels(steps: int) -> list[float]:
    """Noise levels of a sampler with `steps` calls, from pure noise to clean: steps + 1 numbers."""
    return [1 - i / steps for i in range(steps + 1)]


def draw_noise_levels(config: DiffusionConfig, clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """Training noise levels (b, t): uniform per frame; 0 over the clean prefix of the clips that have one.

    Diffusion forcing (Chen et al., 2024) with the paper's long-context training (a clean prefix, loss on the rest),
    and a share of frames at the pure-noise end.
    """
    levels = torch.rand(clips, frames, generator=generator)
    pure = torch.rand(clips, frames, generator=generator) < config.pure_noise
    levels = torch.where(pure, torch.ones(()), levels)
    length = _prefix(config, clips, frames, generator)
    has_prefix = torch.rand(clips, 1, generator=generator) < config.clean_prefix
    prefix = has_prefix & (torch.arange(frames) < length)
    return levels.masked_fill(prefix, 0.0)


def draw_null_context(config: DiffusionConfig, clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """The frame (b) int64 that a clip begins with: 0, or in a share of clips the one after a prefix left out."""
    null = torch.rand(clips, 1, generator=generator) < config.null_context
    return torch.where(null, _prefix(config, clips, frames, generator), 0.0).long()[:, 0]


def _prefix(config: DiffusionConfig, clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """Lengths of clean prefixes (b, 1); at least one frame is left to learn from."""
    low, high = config.clean_prefix_range
    share = low + (high - low) * torch.rand(clips, 1, generator=generator)
    return (share * frames).floor().clamp(max=frames - 1)


def loss_weights(config: DiffusionConfig, kind: str, noise_level: Tensor) -> Tensor:
    """Weight of each frame's squared error, (b, t) → (b, t): 0 for clean frames.

    `sigmoid` weighs the error of the noise by sigmoid(bias - λ), λ the log signal-to-noise ratio (Kingma and Gao,
    "Understanding Diffusion Objectives as the ELBO", 2023), carried over to what the net predicts: with signal a and
    noise s, an error of the noise is a times one of v, and a/s times one of x0.
    """
    noised = (noise_level > 0).float()
    if config.weighting == "uniform":
        return noised
    signal, sigma = (part[..., 0, 0, 0].clamp(min=1e-4) for part in signal_and_noise(noise_level))
    log_snr = 2 * (signal / sigma).log()
    ratio = signal.square() if kind == "v" else (signal / sigma).square()
    return noised * torch.sigmoid(config.sigmoid_bias - log_snr) * ratio


def draw_dropped(config: DiffusionConfig, clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """Frames that are told nothing (b, t): all those of the clips drawn."""
    return (torch.rand(clips, 1, generator=generator) < config.drop_conditions).expand(clips, frames)
