"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.conditions import Conditions
from models.diffusion import add_noise, target
from models.memory import Memory

Forward = Callable[[Tensor, Tensor, Conditions, Memory | None], tuple[Tensor, Memory]]
"""A world model's call, or that of an engine around it."""


def diffusion_forcing_loss(
    model: Forward,
    kind: str,
    clean: Tensor,
    conditions: Conditions,
    noise_level: Tensor,
    noise: Tensor,
    memory: Memory | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Memory]:
    """Mean squared error of the prediction over the noised frames.

    Args:
        model: predicts `kind` from noised frames.
        kind: what the model predicts, `v` or `x0`.
        clean: frames (b, t, C, H, W) in [-1, 1].
        conditions: per frame.
        noise_level: (b, t); frames at level 0 are context and carry no loss.
        noise: unit normal, like `clean`.
        memory: from the frames before.
        total: noised frames that the sum is divided by, for a clip that comes in pieces; those of this call if None.

    Returns:
        The loss () and the memory after the last frame.
    """
    prediction, memory = model(add_noise(clean, noise, noise_level), noise_level, conditions, memory)
    error = (prediction.float() - target(kind, clean, noise, noise_level)).square().mean((2, 3, 4))  # b t
    weight = (noise_level > 0).to(error.dtype)
    return (error * weight).sum() / (weight.sum() if total is None else total).clamp(min=1), memory
