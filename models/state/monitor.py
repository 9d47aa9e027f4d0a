"""The carried scan state under watch: statistics per layer, a pull towards N(0, 1), and an alarm when it blows up.

Letters: r rows (streams times blocks), h heads, p head width, n state width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.models.memory import Memory

SAMPLED = 64
"""Matrices (p, n) whose rank is measured, spread evenly over rows and heads."""


class StateBlowUpError(ArithmeticError):
    """A layer's state is not finite, or larger than is allowed."""


@dataclass(frozen=True)
class StateStatistics:
    """Of one layer's state: moments over all entries, and the mean effective rank of its (p, n) matrices."""

    mean: float
    std: float
    max: float
    rank: float


@torch.no_grad()
def state_statistics(memory: Memory) -> dict[str, StateStatistics]:
    """Statistics by layer, for the layers that scan.

    The effective rank of a matrix is exp(entropy of its singular values, normalised to sum 1): Roy and Vetterli, 2007.
    It is 1 where one direction carries everything, and at most min(p, n).
    """
    statistics = {}
    for name, state in _by_layer(memory):
        matrices = torch.cat(
            [part.flatten(0, 1)[:: max(1, part.shape[0] * part.shape[1] // SAMPLED)] for part in state]
        )
        values = torch.cat([part.flatten() for part in state])
        statistics[name] = StateStatistics(
            mean=values.mean().item(),
            std=values.std().item(),
            max=values.abs().max().item(),
            rank=effective_rank(matrices).mean().item(),
        )
    return statistics


def effective_rank(matrices: Tensor) -> Tensor:
    """Effective rank of each matrix, (m, p, n) → (m); 0 for a matrix of zeros or one that is not finite."""
    finite = matrices.isfinite().all((1, 2), keepdim=True)
    values = torch.linalg.svdvals(torch.where(finite, matrices, 0.0).float())
    share = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
    entropy = -(share * share.clamp(min=1e-30).log()).sum(-1)
    rank: Tensor = entropy.exp() * (values.sum(-1) > 0)
    return rank


def state_loss(memory: Memory, gain: float = 1.0) -> Tensor:
    """Deviation of the carried state from N(0, 1): KL divergence of a normal with its mean and variance, per head.

    The mean over layers and heads of (mean² + variance - 1 - log variance) / 2, each layer's weighted by its own size:
    rms^gain, between 0.1 and 10 and without gradient, so that a state that grows is pulled harder and one that has
    collapsed is left alone (its log variance would else rule the training).
    """
    terms = []
    for _, parts in _by_layer(memory):
        for part in parts:
            variance, mean = torch.var_mean(part.float(), dim=(0, 2, 3), correction=0)  # h
            variance = variance.clamp(min=1e-8)
            divergence = 0.5 * (mean.square() + variance - 1 - variance.log())
            size = (variance + mean.square()).detach().sqrt()
            terms.append((divergence * size.pow(gain).clamp(0.1, 10.0)).mean())
    if not terms:
        raise ValueError("memory: no layer scans, so there is no state to regularise")
    return torch.stack(terms).mean()


@torch.no_grad()
def require_sound(memory: Memory, limit: float) -> None:
    """Check every layer's state.

    Raises:
        StateBlowUpError: names the first layer whose state is not finite or has an entry above `limit`.
    """
    layers = list(_by_layer(memory))
    if not layers:
        return
    maxima = torch.stack([torch.stack([part.abs().max() for part in parts]).max() for _, parts in layers])
    for (name, _), largest in zip(layers, maxima.tolist(), strict=True):  # one wait for the device; nan stays nan
        if not largest <= limit:
            raise StateBlowUpError(
                f"{name}: the carried state reached {largest:g} after frame {memory.frames} of the clip "
                f"(allowed: {limit:g}); lower the learning rate, or regularise the state"
            )


def _by_layer(memory: Memory) -> Iterator[tuple[str, list[Tensor]]]:
    for number, layer in enumerate(memory.layers):
        if layer.ssm:
            yield f"layers.{number}.ssm", [part.state for part in layer.ssm]
