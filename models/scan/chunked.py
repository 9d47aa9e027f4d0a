"""The scan in plain PyTorch, chunk after chunk, with its own backward: the reference backend, made for CPUs.

Letters as in models/scan/scan.py, and r = h / g heads per group, c chunks, L tokens of one chunk.

What makes it fast on a CPU:
- a tile of rows goes through all of its chunks before the next: everything but the inputs stays in the cache;
- decays are powers of two (`exp2`): `exp` is 4 times slower, and 80 times where it underflows;
- the backward keeps the states at chunk borders only and recomputes the rest, with no graph in between;
- matrix products get contiguous operands, and write into what they are added to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.models.scan.chunks import (
    Decays,
    as_matrix,
    between,
    by_head,
    by_token,
    by_token_view,
    decays_of,
    exact,
    heads_first,
    tiles,
)

CHUNK = 64  # fastest on CPUs among 16..256


def chunked_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`longtake.models.scan.scan.scan` on any device. Computes in fp32, or float64 if x is; y has the dtype of x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs = (tensor.to(dtype) for tensor in (x, dt, A, B, C, h0))
    y, state = _ChunkedScan.apply(*inputs, min(chunk, x.shape[1]))  # type: ignore[no-untyped-call]
    return y.to(x.dtype), state


class _Found(NamedTuple):
    """Gradients of a chunk. The first three (b, g, r, L), the others ((b g), L, n)."""

    du_x: Tensor  # of u = x dt, times x, summed over p
    later: Tensor  # of the rate dt A at each token up to here
    earlier: Tensor  # of the rate dt A at each token behind here
    dB: Tensor
    dC: Tensor


class _Tile(NamedTuple):
    """Views of one chunk of a tile: x-like ones (b, g, r, L, p), B and C as matrices ((b g), L, n)."""

    x: Tensor
    B: Tensor
    C: Tensor
    decays: Decays


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    @exact
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        groups = B.shape[2]
        decays = decays_of(dt, dt.double() * A.double(), groups, chunk)
        chunks = len(decays.write)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        state = h0.unflatten(1, (groups, -1)).clone(memory_format=torch.contiguous_format)
        borders = state.new_empty(chunks if any(ctx.needs_input_grad) else 0, *state.shape)
        for rows in tiles(x, B.shape[3], chunk):
            for i in range(chunks):
                before = state[rows]
                if len(borders):
                    before = borders[i, rows].copy_(before)
                out = heads_first(y, groups)[rows, ..., i * chunk : (i + 1) * chunk, :]
                _forward_chunk(_tile(x, B, C, decays, i, rows, chunk), before, state[rows], out)
        ctx.save_for_backward(x, dt, A, B, C, borders)
        ctx.chunk = chunk
        return y, state.flatten(1, 2)

    @staticmethod
    @once_differentiable
    @exact
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, states = ctx.saved_tensors
        groups, chunk = B.shape[2], ctx.chunk
        decays = decays_of(dt, dt.double() * A.double(), groups, chunk)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        du_x, earlier = torch.zeros_like(decays.write), torch.zeros_like(decays.write)
        later = torch.zeros_like(decays.write, dtype=torch.float64)
        dstate = dstate.unflatten(1, (groups, -1)).clone(memory_format=torch.contiguous_format)
        for rows in tiles(x, B.shape[3], chunk):
            for i in reversed(range(len(states))):
                cut = slice(i * chunk, (i + 1) * chunk)
                dy_i, dx_i = (heads_first(tensor, groups)[rows, ..., cut, :] for tensor in (dy, dx))
                gradients = _backward_chunk(
                    _tile(x, B, C, decays, i, rows, chunk), states[i, rows], dy_i, dx_i, dstate[rows]
                )
                length = dy_i.shape[3]
                for table, part in zip((du_x, later, earlier), gradients[:3], strict=True):
                    table[i, rows, ..., :length] = part
                dB[rows, cut], dC[rows, cut] = (
                    part.unflatten(0, (-1, groups)).transpose(1, 2) for part in gradients[3:]
                )
        # The rate at a token counts for everything that was said before it and is heard from it on.
        drate = later.flip(-1).cumsum(-1).flip(-1).to(dt.dtype) + F.pad(earlier.cumsum(-1)[..., :-1], (1, 0))
        dA = (drate * decays.write).sum((0, 1, 4)).view_as(A)
        ddt = rearrange(du_x + drate * A.view(groups, -1, 1), "c b g r L -> b (c L) (g r)")[:, : x.shape[1]]
        return dx, ddt, dA, dB, dC, dstate.flatten(1, 2), None


def _forward_chunk(tile: _Tile, before: Tensor, after: Tensor, y: Tensor) -> None:
    """Fill `y` (b, g, r, L, p) and the state `after` the chunk (b, g, r, p, n); it may be the one `before`."""
    x, B, C, decays = tile
    mix = between(decays.steps).mul_(_match(tile)).flatten(0, 2)
    inside = (mix @ by_head(x, decays.write * decays.unrest)).view(x.shape)
    past = by_token_view(C @ as_matrix(before).mT, x)
    inside.addcmul_(past, decays.steps.exp2()[..., None])
    torch.mul(inside, decays.rest[..., None], out=y)
    torch.mul(before, decays.whole[..., None, None], out=after)
    as_matrix(after).baddbmm_(by_token(x, decays.to_end * decays.write).mT, B)


def _backward_chunk(tile: _Tile, before: Tensor, dy: Tensor, dx: Tensor, dstate: Tensor) -> _Found:
    """Fill `dx` (b, g, r, L, p), turn `dstate` (b, g, r, p, n) from that after the chunk into that before it."""
    x, B, C, decays = tile
    dy_by_head = by_head(dy, decays.rest)

    # y = mix (x dt): what tokens of this chunk tell each other
    keep, match = between(decays.steps), _match(tile)
    dmix = (dy_by_head @ by_head(x, decays.write * decays.unrest).mT).view_as(keep).mul_(keep)
    dmatch = dmix.sum(2).flatten(0, 1)
    dB, dC = dmatch.mT @ C, dmatch @ B
    through = dmix.mul_(match).double()  # gradient of the log decay from j to i
    # Row i less column i: of the sum over all rows from t on, what is said after t must cancel to the last digit.
    later = through.sum(-1).sub_(through.sum(-2))
    du = (keep.mul_(match).flatten(0, 2).mT @ dy_by_head).view(x.shape).mul_(decays.unrest[..., None])

    # after += (x dt, decayed to the end) written by B
    written = by_token_view(B @ as_matrix(dstate).mT, x)
    earlier = (written * x).sum(-1).mul_(decays.to_end * decays.write)
    du.addcmul_(written, decays.to_end[..., None])
    dB.baddbmm_(by_token(x, decays.to_end * decays.write), as_matrix(dstate))

    # y += (before, read by C) decayed since the start; a matrix per head, for what each head heard
    heard = (dy_by_head @ before.flatten(0, 2)).view(*x.shape[:4], -1).mul_(decays.steps.exp2()[..., None])
    dC += heard.sum(2).flatten(0, 1)
    later += (heard * C.unflatten(0, (-1, x.shape[1]))[:, :, None]).sum(-1)

    # after += before, decayed over the whole chunk
    later[..., -1] += (dstate * before).sum((-1, -2)) * decays.whole
    dstate.mul_(decays.whole[..., None, None])
    as_matrix(dstate).baddbmm_(by_token(dy, decays.since_start).mT, C)

    torch.mul(du, decays.write[..., None], out=dx)
    return _Found((du * x).sum(-1), later, earlier, dB, dC)


# --- cutting ----------------------------------------------------------------------------------------------


def _tile(x: Tensor, B: Tensor, C: Tensor, decays: Decays, i: int, rows: slice, chunk: int) -> _Tile:
    cut = slice(i * chunk, (i + 1) * chunk)
    x_i = heads_first(x, B.shape[2])[rows, ..., cut, :]
    B_i, C_i = (rearrange(tensor[rows, cut], "b l g n -> (b g) l n") for tensor in (B, C))
    return _Tile(x_i, B_i, C_i, decays.of(i, rows, x_i.shape[3]))


# --- what is made of a chunk ------------------------------------------------------------------------------


def _match(tile: _Tile) -> Tensor:
    """How much token i reads of what token j writes (b, g, 1, L, L)."""
    b, g, _, length, _ = tile.x.shape
    return (tile.C @ tile.B.mT).view(b, g, 1, length, length)
