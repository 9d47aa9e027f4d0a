"""Block-wise SSM (`ssm`): Mamba-2 over spatial tubes. Every head has a state that fades and is added to.

Carries a state (h, p, n) per block of the frame, whatever the length. Small blocks remember longest: half-lives are
drawn in frames, and a longer one than training asks for is seldom learned. Parameter names are those of a Mamba-2
language model's mixer, so that its weights fit (`init: {mamba2_lm: PATH}`).

Letters: D width, m tokens per block and frame, h heads, p SSM head width, n state width, r rows of blocks that share a
state width, l tokens of a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.memory import SSMState
from longtake.models.mixers.fading import FadingScan, Options
from longtake.models.scan import time_scales
from longtake.models.scan.chunked import CHUNK
from longtake.models.scan.scan import Backend, scan


class BlockSSM(FadingScan):
    """The mixer of Mamba-2 (Dao and Gu, 2024) over each block of the token grid."""

    chunk = CHUNK

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        block: tuple[int, int],
        *,
        d_state: int,
        headdim: int,
        expand: int,
        d_conv: int,
        backend: Backend = "auto",
        half_lives: time_scales.HalfLives | None = None,
    ) -> None:
        super().__init__(grid, block, d_state, expand * dim // headdim, half_lives)
        self.backend: Backend = backend
        self.d_inner, self.headdim = expand * dim, headdim
        mixed = self.d_inner + 2 * d_state  # x, B and C pass through the convolution together
        self.in_proj = nn.Linear(dim, self.d_inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed)
        self.add_time_scales()
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)
        self.draw_time_scales()

    @classmethod
    def build(cls, config: ModelConfig, layer: LayerConfig) -> Self:
        """In the sizes of the config."""
        options = layer.mixer_options
        assert isinstance(options, Options)
        return cls(
            config.dim,
            config.grid,
            config.layer_block(layer),
            d_state=config.d_state,
            headdim=config.headdim,
            expand=config.expand,
            d_conv=config.d_conv,
            backend="mamba" if config.scan == "mamba" else "torch" if config.scan == "torch" else "auto",
            half_lives=options.first_half_lives,
        )

    @classmethod
    def problems(cls, config: ModelConfig, layer: LayerConfig) -> list[str]:
        """Blocks that do not divide the grid, another mixer's kernels."""
        lines = list(super().problems(config, layer))
        if config.scan == "fla":
            lines.append(".mixer: ssm, but scan: fla; the kernels of Mamba-2 are mamba, or take auto or torch")
        return lines

    def empty_state(self, rows: int, width: int, like: Tensor, at: Tensor | None = None) -> SSMState:
        """Nothing remembered, in `width` state dimensions, for `rows` blocks: those `at`, or all."""
        return SSMState(
            state=like.new_zeros(rows, self.heads, self.headdim, width, dtype=torch.float32),
            conv=like.new_zeros(rows, self.conv1d.kernel_size[0] - 1, self.d_inner + 2 * width),
            rows=at,
        )

    def scan_rows(self, u: Tensor, state: SSMState, embedded: Tensor | None) -> tuple[Tensor, SSMState]:
        """Project, convolve, scan, gate, with the first n state dimensions."""
        n = state.width
        in_weight, conv_weight, conv_bias = self._weights(n)
        mixed_width = self.d_inner + 2 * n
        z, mixed, dt = F.linear(u, in_weight).split([self.d_inner, mixed_width, self.heads], -1)
        mixed = torch.cat([state.conv, mixed], 1)
        conv = mixed[:, mixed.shape[1] - state.conv.shape[1] :]
        mixed = F.silu(F.conv1d(mixed.transpose(1, 2), conv_weight, conv_bias, groups=mixed_width).transpose(1, 2))
        x, B, C = mixed.split([self.d_inner, n, n], -1)
        x = rearrange(x, "b l (h p) -> b l h p", p=self.headdim)
        dt = F.softplus(dt.float() + self.dt_bias)
        y, after = scan(
            x, dt, -self.A_log.float().exp(), B[:, :, None], C[:, :, None], state.state, backend=self.backend
        )
        y = rearrange(y + x * self.D[:, None], "b l h p -> b l (h p)")
        return self.out_proj(self.norm(y * F.silu(z))), replace(state, state=after, conv=conv)

    def _weights(self, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights of the input projection and the convolution for the first n state dimensions."""
        project, kernel, bias = self.in_proj.weight, self.conv1d.weight, self.conv1d.bias
        if n == self.d_state:
            return project, kernel, bias
        assert bias is not None
        x, B, C = self.conv1d.weight.split([self.d_inner, self.d_state, self.d_state])
        b_x, b_B, b_C = bias.split([self.d_inner, self.d_state, self.d_state])
        z, p_x, p_B, p_C, dt = project.split([self.d_inner, self.d_inner, self.d_state, self.d_state, self.heads])
        return (
            torch.cat([z, p_x, p_B[:n], p_C[:n], dt]),
            torch.cat([x, B[:n], C[:n]]),
            torch.cat([b_x, b_B[:n], b_C[:n]]),
        )


MIXER = BlockSSM
