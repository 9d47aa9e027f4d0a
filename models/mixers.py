"""Mixers: block-wise SSM over time, and frame-local attention. One face: `mixer(x, state) -> (y, state)`.

Letters: b clips, t frames, N = H·W tokens per frame, D width, k blocks per frame, m tokens per block and frame,
h heads, p SSM head width, n state width, d attention head width, f window frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.memory import SSMState, WindowState
from models.ssd import scan

ROPE_BASE = 1000.0


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
    ) -> None:
        super().__init__()
        self.grid, self.block = grid, block
        self.d_inner, self.d_state, self.headdim = expand * dim, d_state, headdim
        self.heads = self.d_inner // headdim
        self.d_mixed = self.d_inner + 2 * d_state  # x, B and C pass through the convolution together
        self.in_proj = nn.Linear(dim, self.d_inner + self.d_mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(self.d_mixed, self.d_mixed, d_conv, groups=self.d_mixed)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)
        self._init_time_scales()

    @torch.no_grad()
    def _init_time_scales(self) -> None:
        """Log-uniform step sizes; the smallest shrinks with the tokens per frame: memory is counted in frames."""
        tokens_per_frame = self.block[0] * self.block[1]
        low, high = math.log(1e-3 / tokens_per_frame), math.log(1e-1)
        dt = torch.exp(torch.rand(self.heads) * (high - low) + low)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log.copy_(torch.empty(self.heads).uniform_(1, 16).log())

    def forward(self, x: Tensor, state: SSMState | None) -> tuple[Tensor, SSMState]:
        """x (b, t, N, D) → the same shape, and the state after the last frame."""
        rows, columns = self.grid
        i, j = self.block
        frames = x.shape[1]
        blocks = {"h": rows // i, "w": columns // j, "i": i, "j": j}
        tokens = rearrange(x, "b t (h i w j) D -> (b h w) (t i j) D", **blocks)
        y, state = self._mix(tokens, state)
        return rearrange(y, "(b h w) (t i j) D -> b t (h i w j) D", t=frames, **blocks), state

    def _mix(self, u: Tensor, state: SSMState | None) -> tuple[Tensor, SSMState]:
        """u (b·k, t·m, D): project, convolve, scan, gate."""
        if state is None:
            state = self._empty_state(u)
        z, mixed, dt = self.in_proj(u).split([self.d_inner, self.d_mixed, self.heads], -1)
        mixed = torch.cat([state.conv, mixed], 1)
        conv = mixed[:, mixed.shape[1] - state.conv.shape[1] :]
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2)).transpose(1, 2))
        x, B, C = mixed.split([self.d_inner, self.d_state, self.d_state], -1)
        x = rearrange(x, "b l (h p) -> b l h p", p=self.headdim)
        dt = F.softplus(dt.float() + self.dt_bias)
        y, after = scan(x, dt, -self.A_log.float().exp(), B[:, :, None], C[:, :, None], state.state)
        y = rearrange(y + x * self.D[:, None], "b l h p -> b l (h p)")
        return self.out_proj(self.norm(y * F.silu(z))), SSMState(after, conv)

    def _empty_state(self, u: Tensor) -> SSMState:
        width = self.conv1d.kernel_size[0] - 1
        return SSMState(
            state=u.new_zeros(u.shape[0], self.heads, self.headdim, self.d_state, dtype=torch.float32),
            conv=u.new_zeros(u.shape[0], width, self.d_mixed),
        )


class FrameLocalAttention(nn.Module):
    """Every token of frame t attends to all tokens of frames t - window + 1 .. t, with no mask inside a frame.

    Time enters by rotary embedding of the frame index, baked into the cached keys.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, state: WindowState | None, first_frame: int) -> tuple[Tensor, WindowState]:
        """x (b, t, N, D) from the stream's frame `first_frame` on → the same shape, and the window after."""
        q, k, v = rearrange(self.qkv(x), "b t N (three h d) -> three b t N h d", three=3, h=self.heads)
        q = _rotate(self.norm_q(q), first_frame)
        k = _rotate(self.norm_k(k), first_frame)
        if state is not None:
            k, v = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
        y = _attend_in_window(q, k, v, self.window)
        start = max(0, k.shape[1] - (self.window - 1))
        return self.out(rearrange(y, "b t N h d -> b t N (h d)")), WindowState(k[:, start:], v[:, start:])


def _rotate(x: Tensor, first_frame: int) -> Tensor:
    """Rotary embedding of the frame index on x (b, t, N, h, d)."""
    half = x.shape[-1] // 2
    frequency = ROPE_BASE ** (-torch.arange(half, device=x.device) / half)
    time = torch.arange(first_frame, first_frame + x.shape[1], device=x.device, dtype=torch.float32)
    angle = (time[:, None] * frequency)[:, None, None]  # t 1 1 half
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., 2 * half :]], -1)


def _attend_in_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """q (b, t, N, h, d) are the last t frames of k and v (b, t + cached, N, h, d).

    The windows are laid out side by side, one attention call for all frames: memory window·t, linear in t.
    """
    clips, frames = q.shape[:2]
    missing = max(0, frames + window - 1 - k.shape[1])  # frames before the stream's start
    k, v = (F.pad(part, (0, 0, 0, 0, 0, 0, missing, 0)) for part in (k, v))
    k, v = (part[:, part.shape[1] - (frames + window - 1) :] for part in (k, v))
    k, v = (rearrange(part.unfold(1, window, 1), "b t N h d w -> b t (w N) h d") for part in (k, v))
    mask = None
    if missing:
        frame = torch.arange(frames, device=q.device)[:, None] + torch.arange(window, device=q.device)
        mask = (frame >= missing).repeat_interleave(q.shape[2], 1)  # t, window·N
        mask = mask.repeat(clips, 1)[:, None, None]
    q, k, v = (rearrange(part, "b t N h d -> (b t) h N d") for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(y, "(b t) h N d -> b t N h d", b=clips)
