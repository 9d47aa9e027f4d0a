"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.conditions import Conditions
from models.diffusion import add_noise, target
from models.memory import Memory

Forward = Callable[[Tensor, Tensor, Conditions, Memory | None], tuple[Tensor, Memory | None]]
"""A world model's call, or that of an engine around it."""


def diffusion_forcing_loss(
    model: Forward,
    kind: str,
    clean: Tensor,
    conditions: Conditions,
    noise_level: Tensor,
    noise: Tensor,
    weight: Tensor,
    memory: Memory | None = None,
) -> tuple[Tensor, Memory | None]:
    """Weighted sum of the squared errors of the prediction, averaged over the pixels of a frame.

    Args:
        model: predicts `kind` from noised frames.
        kind: what the model predicts, `v` or `x0`.
        clean: frames (b, t, C, H, W) in [-1, 1].
        conditions: per frame.
        noise_level: (b, t).
        noise: unit normal, like `clean`.
        weight: (b, t), from `loss_weights`; divided by its sum over the whole clip, where a mean is wanted.
        memory: from the frames before.

    Returns:
        The loss () and the memory after the last frame.
    """
    prediction, memory = model(add_noise(clean, noise, noise_level), noise_level, conditions, memory)
    error = (prediction.float() - target(kind, clean, noise, noise_level)).square().mean((2, 3, 4))  # b t
    return (error * weight).sum(), memory
