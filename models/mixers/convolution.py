"""Depth-wise convolution (local: `convolution`): a few frames and 3 x 3 tokens, each channel for itself. The cheap one.

Carries the inputs of the frames of its window but one. It slides over frames, so it does not go with `chunk`.

Letters: b clips, t frames, N = H·W tokens per frame, D width, f frames of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.memory import Frames, last
from longtake.models.mixers.base import Mixer


class LocalConvolution(Mixer):
    """Depth-wise convolution over the frames of a window and 3 x 3 tokens, then a projection: the cheap local mixer."""

    def __init__(self, dim: int, grid: tuple[int, int], past: int, future: int) -> None:
        super().__init__()
        self.grid, self.past, self.future = grid, past, future
        self.convolution = nn.Conv3d(dim, dim, (past + future, 3, 3), padding=(0, 1, 1), groups=dim)
        self.out = nn.Linear(dim, dim, bias=False)

    @classmethod
    def build(cls, config: ModelConfig, layer: LayerConfig) -> Self:
        """Over the layer's window."""
        return cls(config.dim, config.grid, config.layer_window(layer), config.window_future)

    @classmethod
    def problems(cls, config: ModelConfig, layer: LayerConfig) -> Iterator[str]:
        """Chunks of frames."""
        if config.chunk:
            yield ".local: convolution slides over frames; with chunk take attention or none"

    @classmethod
    def words(cls, config: ModelConfig, layer: LayerConfig) -> str:
        """Its name and its window."""
        return f"convolution {config.layer_window(layer)}"

    def forward(self, x: Tensor, kept: Frames, first_frame: int | Tensor, embedded: Tensor) -> tuple[Tensor, Frames]:
        """x (b, t, N, D) → the same shape, and the inputs of the last frames, (b, f - 1, N, D)."""
        frames = x.shape[1]
        x = torch.cat([*kept, x], 1)
        missing = max(0, frames + self.past - 1 - x.shape[1])  # frames before the stream's start
        padded = F.pad(x, (0, 0, 0, 0, missing, self.future))
        padded = rearrange(padded, "b t (H W) D -> b D t H W", H=self.grid[0])
        y = rearrange(F.silu(self.convolution(padded)), "b D t H W -> b t (H W) D")
        return self.out(y), (last(x, min(x.shape[1], self.past - 1)),)


LOCAL = LocalConvolution
