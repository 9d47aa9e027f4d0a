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
from longtake.models.memory import SSMState, last
from longtake.models.mixers.fading import FadingScan, Options
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
        options: Options | None = None,
        condition_dim: int | None = None,
    ) -> None:
        options = options or Options()
        super().__init__(grid, block, d_state, expand * dim // headdim, options.first_half_lives)
        self.options = options
        self.backend: Backend = backend
        self.d_inner, self.headdim = expand * dim, headdim
        mixed = self.d_inner + 2 * d_state  # x, B and C pass through the convolution together
        self.in_proj = nn.Linear(dim, self.d_inner + mixed + self.heads, bias=False)
        channels = {"all": mixed, "values": self.d_inner, "none": 0}[options.convolution]
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels) if channels else None
        self.reads_conditions = options.pose_keys
        self.pose_keys = nn.Linear(condition_dim or dim, d_state, bias=False) if options.pose_keys else None
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
            options=options,
            condition_dim=config.condition_dim,
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
        keys = 2 if self.options.convolution == "all" else 0
        before = 0 if self.conv1d is None else self.conv1d.kernel_size[0] - 1
        channels = 0 if self.conv1d is None else self.d_inner + keys * width
        zeros = like.new_zeros(rows, self.heads, self.headdim, width, dtype=torch.float32)
        return SSMState(zeros, like.new_zeros(rows, before, channels), at, keys)

    def scan_rows(self, u: Tensor, state: SSMState, embedded: Tensor | None) -> tuple[Tensor, SSMState]:
        """Project, convolve, scan, gate, with the first n state dimensions."""
        n = state.width
        sizes = [self.d_inner, self.d_inner, n, n, self.heads]
        z, *mixed, dt = F.linear(u, self._in_weight(n)).split(sizes, -1)
        (x, B, C), conv = self._convolve(mixed, state)
        if self.pose_keys is not None and embedded is not None:
            place = F.linear(embedded, self.pose_keys.weight[:n])
            B, C = B + place, C + place
        x = rearrange(x, "b l (h p) -> b l h p", p=self.headdim)
        dt = F.softplus(dt.float() + self.dt_bias)
        y, after = scan(
            x, dt, -self.A_log.float().exp(), B[:, :, None], C[:, :, None], state.state, backend=self.backend
        )
        y = rearrange(y + x * self.D[:, None], "b l h p -> b l (h p)")
        return self.out_proj(self.norm(y * F.silu(z))), replace(state, state=after, conv=conv)

    def _convolve(self, parts: list[Tensor], state: SSMState) -> tuple[list[Tensor], Tensor]:
        """x, B and C (r, l, ...), of which some see the tokens before; and the last inputs of those."""
        if self.conv1d is None:
            return [F.silu(part) for part in parts], state.conv
        seen = parts if self.options.convolution == "all" else parts[:1]
        mixed = torch.cat([state.conv.to(parts[0].dtype), torch.cat(seen, -1)], 1)
        conv = last(mixed, state.conv.shape[1])
        weight, bias = self._conv_weights(state.width, len(seen))
        mixed = F.conv1d(mixed.transpose(1, 2), weight, bias, groups=mixed.shape[-1]).transpose(1, 2)
        after = mixed.split([part.shape[-1] for part in seen], -1)
        return [F.silu(part) for part in (*after, *parts[len(seen) :])], conv

    def _in_weight(self, n: int) -> Tensor:
        if n == self.d_state:
            return self.in_proj.weight
        sizes = [2 * self.d_inner, self.d_state, self.d_state, self.heads]
        head, B, C, dt = self.in_proj.weight.split(sizes)
        return torch.cat([head, B[:n], C[:n], dt])

    def _conv_weights(self, n: int, seen: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution over x alone, or over the first n state dimensions of B and C too."""
        assert self.conv1d is not None and self.conv1d.bias is not None
        weight, bias = self.conv1d.weight, self.conv1d.bias
        if seen == 1 or n == self.d_state:
            return weight, bias
        sizes = [self.d_inner, self.d_state, self.d_state]
        (x, B, C), (b_x, b_B, b_C) = weight.split(sizes), bias.split(sizes)
        return torch.cat([x, B[:n], C[:n]]), torch.cat([b_x, b_B[:n], b_C[:n]])


MIXER = BlockSSM
