"""What scans share whose heads carry a matrix that fades by a step size: Mamba-2's, and the gated delta rule's.

Letters: h heads, p head width, n state width.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.mixers import base
from longtake.models.scan import time_scales


class Options(base.Options):
    """Settings that both have."""

    half_lives: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] | None = None
    """Frames of the shortest and the longest half-life at the start; as Mamba-2 draws them when not given. [frames]"""
    convolution: Literal["all", "values", "none"] = "all"
    """What the short convolution over the last `d_conv` tokens sees. With `values` or `none` a key is of its token
    alone, so that a place has the same key whatever was seen before it."""
    pose_keys: bool = False
    """Whether the frame's conditions are added to keys and queries, by the same weights."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.half_lives is not None and self.half_lives[0] > self.half_lives[1]:
            raise ValueError(f"half_lives: {self.half_lives}; the shortest comes first")
        return self

    @property
    def first_half_lives(self) -> time_scales.HalfLives | None:
        """The shortest and the longest at the start."""
        return None if self.half_lives is None else (self.half_lives[0], self.half_lives[1])


class FadingScan(base.BlockScan):
    """A scan whose heads each carry a matrix (p, n); at rest it fades by exp(-softplus(dt_bias) exp(A_log)) a token."""

    Options = Options
    settings: ClassVar[frozenset[str]] = frozenset({"d_state", "headdim", "expand", "d_conv", "scan"})
    nests = True
    state_settings: ClassVar[dict[str, str]] = {"d_state": "smaller", "spatial_block": "larger"}
    chunk: ClassVar[int]
    """Tokens that the scan takes at a time."""

    dt_bias: nn.Parameter
    A_log: nn.Parameter

    def __init__(
        self,
        grid: tuple[int, int],
        block: tuple[int, int],
        d_state: int,
        heads: int,
        half_lives: time_scales.HalfLives | None,
    ) -> None:
        super().__init__(grid, block, d_state)
        self.heads, self.first_half_lives = heads, half_lives

    def add_time_scales(self) -> None:
        """Register the parameters of the step sizes, not yet drawn."""
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))

    @torch.no_grad()
    def draw_time_scales(self) -> None:
        """Half-lives in frames: memory is counted in them."""
        drawn = time_scales.draw(self.heads, self.tokens_per_frame, self.first_half_lives)
        for parameter, values in zip((self.dt_bias, self.A_log), drawn, strict=True):
            parameter.copy_(values)

    def half_lives(self) -> Tensor:
        """Frames in which each head's state halves (h), at its step size without input; what is overwritten is gone."""
        return time_scales.half_lives(self.dt_bias, self.A_log, self.tokens_per_frame)

    @classmethod
    def period(cls, config: ModelConfig, layer: LayerConfig) -> int:
        """Frames after which the scan has whole chunks."""
        return cls.chunk // math.gcd(cls.chunk, math.prod(config.layer_block(layer)))

    @classmethod
    def full_rank(cls, config: ModelConfig) -> int:
        """Of a matrix (p, n)."""
        return min(config.d_state, config.headdim)
