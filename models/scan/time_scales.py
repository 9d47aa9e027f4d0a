"""Step sizes and decay rates of scans that fade: how they are drawn, and the half-lives that follow.

A head's state fades by exp(-softplus(dt_bias) exp(A_log)) a token, at rest: Mamba-2's parameters, and the gated delta
rule's. Memory is counted in frames, and a frame is as many tokens as a spatial block has.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HalfLives = tuple[float, float]
"""Frames of the shortest and the longest half-life at the start."""


def draw(heads: int, tokens_per_frame: int, half_lives: HalfLives | None = None) -> tuple[Tensor, Tensor]:
    """dt_bias and A_log of so many heads.

    Without `half_lives` as Mamba-2 draws them: log-uniform step sizes, of which the smallest shrinks with the tokens
    per frame, and rates from 1 to 16. With them, half-lives are log-uniform between the two, whatever the rate.
    """
    low, high = math.log(1e-3 / tokens_per_frame), math.log(1e-1)
    dt = torch.exp(torch.rand(heads) * (high - low) + low)
    A_log = torch.empty(heads).uniform_(1, 16).log()
    if half_lives is not None:
        share = (dt.log() - low) / (high - low)
        frames = torch.exp(math.log(half_lives[0]) + share * math.log(half_lives[1] / half_lives[0]))
        dt = math.log(2) / (frames * tokens_per_frame * A_log.exp())
    return dt + torch.log(-torch.expm1(-dt)), A_log  # the inverse of softplus


def half_lives(dt_bias: Tensor, A_log: Tensor, tokens_per_frame: int) -> Tensor:
    """Frames in which each head's state halves (h), at its step size without input."""
    tokens = math.log(2) / (F.softplus(dt_bias.detach().float()) * A_log.detach().float().exp())
    return tokens / tokens_per_frame
