"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longtake.models.conditions import Conditions
from longtake.models.diffusion import add_noise, target, to_clean
from longtake.models.memory import Memory

Forward = Callable[[Tensor, Tensor, Conditions, Memory | None], tuple[Tensor, Memory | None]]
"""A world model's call, or that of an engine around it."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""How far apart images (n, C, H, W) in [-1, 1] look, (n,): `longtake.models.perceptual.lpips.Lpips`, say."""


def weighted(distance: Distance, weight: float) -> Distance:
    """A distance that counts `weight` times."""
    return lambda a, b: weight * distance(a, b)


def diffusion_forcing_loss(
    model: Forward,
    kind: str,
    clean: Tensor,
    conditions: Conditions,
    noise_level: Tensor,
    noise: Tensor,
    weight: Tensor,
    memory: Memory | None = None,
    distance: Distance | None = None,
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
        distance: of the clean frame that is predicted from the true one, added to a frame's squared error.

    Returns:
        The loss () and the memory after the last frame.
    """
    noised = add_noise(clean, noise, noise_level)
    prediction, memory = model(noised, noise_level, conditions, memory)
    prediction = prediction.float()
    error = (prediction - target(kind, clean, noise, noise_level)).square().mean((2, 3, 4))  # b t
    if distance is not None:
        weighted = weight > 0  # b t; nets are slow: only where the loss is
        predicted = to_clean(kind, prediction, noised, noise_level)
        far = error.new_zeros(error.shape)
        far[weighted] = distance(predicted[weighted], clean[weighted])
        error = error + far
    return (error * weight).sum(), memory


def reconstruction_loss(
    frames: Tensor,
    decoded: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    squared: float,
    kl: float,
    distance: Distance | None = None,
) -> Tensor:
    """What an autoencoder minimises: the mean absolute error; weighted, the squared one and the KL divergence.

    Args:
        frames: (n, C, H, W) in [-1, 1].
        decoded: their reconstruction.
        mean: of the latents (n, c, h, w).
        log_variance: of the latents.
        squared: weight of the mean squared error.
        kl: weight of the KL divergence of the latents from N(0, 1), averaged over their numbers.
        distance: of the reconstruction from the true frames, added as it is.
    """
    gap = decoded.float() - frames
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = gap.abs().mean() + squared * gap.square().mean() + kl * divergence
    return loss if distance is None else loss + distance(decoded.float(), frames).mean()
