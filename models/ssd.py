"""The state-space scan of Mamba-2 (SSD): a readable recurrence, and a chunked form with its own backward.

Letters: b batch, l length, h heads, p head width, g groups of heads that share B and C, n state width,
r = h / g heads per group, L length of one chunk.

The recurrence, per head (Dao and Gu, "Transformers are SSMs", 2024):

    s_t = exp(dt_t A) s_{t-1} + dt_t x_t B_t^T          state  (p, n)
    y_t = s_t C_t                                       output (p)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

CHUNK = 64  # fastest on CPUs among 16..256 (L x L products stay in cache)


def scan_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence, one token after another: the specification that `scan` is tested against.

    Shapes as in `scan`. Runs in the dtype of `x`; use float64 for a reference.
    """
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(heads_per_group, 2), C.repeat_interleave(heads_per_group, 2)
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3]) if h0 is None else h0.to(x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        write = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        state = decay * state + write
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, 1), state


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scan a sequence with a carried state, in chunks, linear in the length.

    Args:
        x: inputs (b, l, h, p).
        dt: step sizes after softplus (b, l, h), fp32.
        A: decay rates (h), negative, fp32.
        B: write keys (b, l, g, n).
        C: read keys (b, l, g, n).
        h0: state carried in (b, h, p, n), fp32; zeros when None.
        chunk: tokens per chunk.

    Returns:
        Outputs (b, l, h, p) and the state carried out (b, h, p, n) in fp32. One call over a sequence equals
        any cut of it with the state handed on, in values and in gradients (those of `h0` included).
    """
    if h0 is None:
        h0 = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=torch.float32)
    y, state = _ChunkedScan.apply(x, dt, A, B, C, h0, chunk)  # type: ignore[no-untyped-call]
    return y, state


class _ChunkedScan(torch.autograd.Function):
    """Loop over chunks; saves the inputs and the states at chunk borders only, and recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        groups = B.shape[2]
        state = rearrange(h0.float(), "b (g r) p n -> b g r p n", g=groups)
        outputs, borders = [], []
        for piece in _chunks(x, dt, B, C, chunk):
            borders.append(state)
            y, state = _forward_chunk(*piece, A.float().view(groups, -1), state)
            outputs.append(rearrange(y, "b g r l p -> b l (g r) p"))
        ctx.save_for_backward(x, dt, A, B, C, *borders)
        ctx.chunk = chunk
        return torch.cat(outputs, 1), rearrange(state, "b g r p n -> b (g r) p n")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy, dstate = gradients
        x, dt, A, B, C, *borders = ctx.saved_tensors
        groups = B.shape[2]
        A32 = A.float().view(groups, -1)
        dstate = rearrange(dstate.float(), "b (g r) p n -> b g r p n", g=groups)
        dA = torch.zeros_like(A32)
        pieces = list(_chunks(x, dt, B, C, ctx.chunk))
        dys = [rearrange(part, "b l (g r) p -> b g r l p", g=groups) for part in dy.split(ctx.chunk, 1)]
        found = []
        for piece, part, state in zip(reversed(pieces), reversed(dys), reversed(borders), strict=True):
            dx_i, ddt_i, dA_i, dB_i, dC_i, dstate = _backward_chunk(*piece, A32, state, part, dstate)
            dA += dA_i
            found.append((dx_i, ddt_i, dB_i, dC_i))
        dxs, ddts, dBs, dCs = zip(*reversed(found), strict=True)
        return (
            rearrange(torch.cat(dxs, 3), "b g r l p -> b l (g r) p"),
            rearrange(torch.cat(ddts, 3), "b g r l -> b l (g r)").to(dt.dtype),
            dA.view_as(A).to(A.dtype),
            rearrange(torch.cat(dBs, 2), "b g l n -> b l g n"),
            rearrange(torch.cat(dCs, 2), "b g l n -> b l g n"),
            rearrange(dstate, "b g r p n -> b (g r) p n"),
            None,
        )


def _chunks(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Cut the inputs into chunks, heads grouped: x (b,g,r,L,p), dt (b,g,r,L) fp32, B and C (b,g,L,n)."""
    groups = B.shape[2]
    for x_i, dt_i, B_i, C_i in zip(
        x.split(chunk, 1), dt.split(chunk, 1), B.split(chunk, 1), C.split(chunk, 1), strict=True
    ):
        yield (
            rearrange(x_i, "b l (g r) p -> b g r l p", g=groups),
            rearrange(dt_i.float(), "b l (g r) -> b g r l", g=groups),
            rearrange(B_i, "b l g n -> b g l n"),
            rearrange(C_i, "b l g n -> b g l n"),
        )


def _decay(dt: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Log decay since the chunk's start (b,g,r,L), and the decay from token j to token i (b,g,r,L,L)."""
    log_decay = (dt * A[:, :, None]).cumsum(-1)
    between = log_decay[..., :, None] - log_decay[..., None, :]
    future = torch.ones(between.shape[-2:], dtype=torch.bool, device=dt.device).triu(1)
    return log_decay, between.masked_fill_(future, float("-inf")).exp_()


def _forward_chunk(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    log_decay, between = _decay(dt, A)
    u = x * dt[..., None].to(x.dtype)  # b g r L p
    match = torch.einsum("bgin,bgjn->bgij", C, B)  # b g L L
    y = (between * match[:, :, None]).to(x.dtype) @ u
    read = torch.einsum("bgln,bgrpn->bgrlp", C, state.to(x.dtype))
    y = y + read * log_decay.exp()[..., None].to(x.dtype)
    to_end = (log_decay[..., -1:] - log_decay).exp()[..., None].to(x.dtype)
    write = torch.einsum("bgrlp,bgln->bgrpn", u * to_end, B)
    return y, state * log_decay[..., -1].exp()[..., None, None] + write.float()


def _backward_chunk(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, state: Tensor, dy: Tensor, dnext: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one chunk: (dx, ddt, dA, dB, dC, dstate), given those of its output and next state."""
    dtype = x.dtype
    log_decay, between = _decay(dt, A)
    u = x * dt[..., None].to(dtype)
    match = torch.einsum("bgin,bgjn->bgij", C, B)
    mix = between * match[:, :, None]  # b g r L L

    # y = mix @ u: what tokens of this chunk tell each other
    du = mix.to(dtype).transpose(-1, -2) @ dy
    dmix = (dy @ u.transpose(-1, -2)).float()
    dmatch = (dmix * between).sum(2).to(dtype)
    dC = dmatch @ B
    dB = dmatch.transpose(-1, -2) @ C
    through = dmix.mul_(mix)  # d(loss)/d(log decay from j to i)
    dlog = through.sum(-1) - through.sum(-2)

    # y += exp(log_decay) * (state read by C): what the chunk is told by the past
    since_start = log_decay.exp()[..., None].to(dtype)
    dy_read = dy * since_start
    past = state.to(dtype)
    dC = dC + torch.einsum("bgrlp,bgrpn->bgln", dy_read, past)
    dstate = torch.einsum("bgrlp,bgln->bgrpn", dy_read, C).float()
    dlog = dlog + (torch.einsum("bgln,bgrpn->bgrlp", C, past) * dy_read).float().sum(-1)

    # next state = exp(log_decay at the end) * state + (u decayed to the end) written by B
    to_end = (log_decay[..., -1:] - log_decay).exp()[..., None].to(dtype)
    dnext_low = dnext.to(dtype)
    dwritten = torch.einsum("bgln,bgrpn->bgrlp", B, dnext_low)
    du = du + dwritten * to_end
    dB = dB + torch.einsum("bgrlp,bgrpn->bgln", u * to_end, dnext_low)
    kept = (dwritten * u * to_end).float().sum(-1)
    last = log_decay[..., -1].exp()
    dlog = dlog - kept
    dlog[..., -1] += kept.sum(-1) + last * (dnext * state).sum((-1, -2))
    dstate = dstate + dnext * last[..., None, None]

    # log_decay = cumsum(dt * A), u = x * dt
    drate = dlog.flip(-1).cumsum(-1).flip(-1)
    ddt = (du * x).float().sum(-1) + drate * A[:, :, None]
    dA = (drate * dt).sum((0, 3))
    return du * dt[..., None].to(dtype), ddt, dA, dB, dC, dstate
