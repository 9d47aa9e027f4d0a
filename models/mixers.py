"""Mixers over tokens of a grid: block-wise SSM over all of time, and a depth-wise convolution over a few frames.

One face: `mixer(x, kept) -> (y, kept)`; attention has a file of its own.

Letters: b clips, t frames, N = H·W tokens per frame, D width, k blocks per frame, m tokens per block and frame,
h heads, p SSM head width, n state width, r rows of blocks that share a state width, f frames of a window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.memory import Frames, SSMState
from models.ssd import Backend, scan


class BlockSSM(nn.Module):
    """Mamba-2 mixer over spatial tubes: each (b_h, b_w) block of the token grid is scanned alone, over all frames.

    A token's predecessor in time is b_h·b_w steps back instead of H·W, so small blocks remember longer and large
    ones see more of the frame. Inside a block tokens are ordered frame by frame, so the scan is causal in frames.
    Parameter names are those of a Mamba-2 language model's mixer, so that its weights fit.
    """

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
    ) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.grid, self.block = grid, block
        self.d_inner, self.d_state, self.headdim = expand * dim, d_state, headdim
        self.heads = self.d_inner // headdim
        self.blocks = (grid[0] // block[0]) * (grid[1] // block[1])
        mixed = self.d_inner + 2 * d_state  # x, B and C pass through the convolution together
        self.in_proj = nn.Linear(dim, self.d_inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)
        self.draw_time_scales()

    @torch.no_grad()
    def draw_time_scales(self) -> None:
        """Log-uniform step sizes; the smallest shrinks with the tokens per frame: memory is counted in frames."""
        tokens_per_frame = self.block[0] * self.block[1]
        low, high = math.log(1e-3 / tokens_per_frame), math.log(1e-1)
        dt = torch.exp(torch.rand(self.heads) * (high - low) + low)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log.copy_(torch.empty(self.heads).uniform_(1, 16).log())

    def half_lives(self) -> Tensor:
        """Frames in which each head's state halves (h), at its step size without input."""
        tokens = math.log(2) / (F.softplus(self.dt_bias.detach().float()) * self.A_log.detach().float().exp())
        return tokens / (self.block[0] * self.block[1])

    def forward(self, x: Tensor, states: tuple[SSMState, ...]) -> tuple[Tensor, tuple[SSMState, ...]]:
        """x (b, t, N, D) → the same shape, and the states after the last frame.

        The states given decide how many state dimensions are used, block by block; none given: all, from zero.
        """
        rows, columns = self.grid
        i, j = self.block
        frames = x.shape[1]
        blocks = {"h": rows // i, "w": columns // j, "i": i, "j": j}
        tokens = rearrange(x, "b t (h i w j) D -> (b h w) (t i j) D", **blocks)
        y, after = self._mix_rows(tokens, states or (self.empty_state(tokens.shape[0], self.d_state, like=x),))
        return rearrange(y, "(b h w) (t i j) D -> b t (h i w j) D", t=frames, **blocks), after

    def empty_state(self, rows: int, width: int, like: Tensor, at: Tensor | None = None) -> SSMState:
        """Nothing remembered, in `width` state dimensions, for `rows` blocks: those `at`, or all."""
        return SSMState(
            state=like.new_zeros(rows, self.heads, self.headdim, width, dtype=torch.float32),
            conv=like.new_zeros(rows, self.conv1d.kernel_size[0] - 1, self.d_inner + 2 * width),
            rows=at,
        )

    def _mix_rows(self, tokens: Tensor, states: tuple[SSMState, ...]) -> tuple[Tensor, tuple[SSMState, ...]]:
        """One pass per state width, each over its own rows; the results go back where they belong."""
        if len(states) == 1 and states[0].rows is None:
            y, state = self._mix(tokens, states[0])
            return y, (state,)
        made = [self._mix(tokens[state.rows], state) for state in states]
        order = torch.cat([state.rows for state in states if state.rows is not None])
        y = torch.cat([y for y, _ in made])
        return y[order.argsort()], tuple(state for _, state in made)

    def _mix(self, u: Tensor, state: SSMState) -> tuple[Tensor, SSMState]:
        """u (r, t·m, D): project, convolve, scan, gate, with the first n state dimensions."""
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
        return self.out_proj(self.norm(y * F.silu(z))), SSMState(after, conv, state.rows)

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


class LocalConvolution(nn.Module):
    """Depth-wise convolution over the frames of a window and 3 x 3 tokens, then a projection: the cheap local mixer."""

    def __init__(self, dim: int, grid: tuple[int, int], past: int, future: int) -> None:
        super().__init__()
        self.grid, self.past, self.future = grid, past, future
        self.convolution = nn.Conv3d(dim, dim, (past + future, 3, 3), padding=(0, 1, 1), groups=dim)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, kept: Frames, first_frame: int) -> tuple[Tensor, Frames]:
        """x (b, t, N, D) → the same shape, and the inputs of the last frames, (b, f - 1, N, D)."""
        frames = x.shape[1]
        x = torch.cat([*kept, x], 1)
        missing = max(0, frames + self.past - 1 - x.shape[1])  # frames before the stream's start
        padded = F.pad(x, (0, 0, 0, 0, missing, self.future))
        padded = rearrange(padded, "b t (H W) D -> b D t H W", H=self.grid[0])
        y = rearrange(F.silu(self.convolution(padded)), "b D t H W -> b t (H W) D")
        return self.out(y), (x[:, max(0, x.shape[1] - self.past + 1) :],)
