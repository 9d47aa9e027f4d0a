"""The gated delta rule in plain PyTorch, chunk after chunk, with its own backward: the reference backend, for CPUs.

What a token writes is its value less what its key already holds, and that depends on every token before it. Within a
chunk this is one triangular system (the WY form: Yang et al., "Gated Delta Networks", 2024); once it is solved, a chunk
is that of a scan that only adds, and goes the ways of models/scan/chunked.py.

Letters as in models/scan/chunks.py. Decays within a chunk are split into whole powers of two and a rest; the rest is
taken out of what is written (u) and read (y), so that between tokens there are powers of two alone.
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

CHUNK = 64  # fastest on CPUs among 16..128


def chunked_delta_rule(
    v: Tensor, beta: Tensor, log_decay: Tensor, k: Tensor, q: Tensor, h0: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`longtake.models.scan.delta_rule.delta_rule` on any device. Computes in fp32, or float64 if v is; y has the dtype
    of v."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    inputs = (tensor.to(dtype) for tensor in (v, beta, log_decay, k, q, h0))
    y, state = _ChunkedDeltaRule.apply(*inputs, min(chunk, v.shape[1]))  # type: ignore[no-untyped-call]
    return y.to(v.dtype), state


class _Tile(NamedTuple):
    """One chunk of a tile: v (b, g, r, L, p), and queries over keys ((b g), 2 L, n)."""

    v: Tensor
    both: Tensor
    decays: Decays


class _Found(NamedTuple):
    """Gradients of a chunk. The first three (b, g, r, L), the last, of queries over keys, ((b g), 2 L, n)."""

    dbeta: Tensor
    later: Tensor  # of the log decay at each token up to here
    earlier: Tensor  # of the log decay at each token behind here
    dboth: Tensor


class _ChunkedDeltaRule(torch.autograd.Function):
    @staticmethod
    @exact
    def forward(
        ctx: Any, v: Tensor, beta: Tensor, log_decay: Tensor, k: Tensor, q: Tensor, h0: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        groups, learns = k.shape[2], any(ctx.needs_input_grad)
        decays = decays_of(beta, log_decay.double(), groups, chunk)
        chunks = len(decays.write)
        y = torch.empty_like(v, memory_format=torch.contiguous_format)
        state = h0.unflatten(1, (groups, -1)).clone(memory_format=torch.contiguous_format)
        borders = state.new_empty(chunks if learns else 0, *state.shape)
        news: list[Tensor] = []
        for rows in tiles(v, k.shape[3], chunk):
            for i in range(chunks):
                before = state[rows]
                if learns:
                    before = borders[i, rows].copy_(before)
                out = heads_first(y, groups)[rows, ..., i * chunk : (i + 1) * chunk, :]
                new = _forward_chunk(_tile(v, k, q, decays, i, rows, chunk), before, state[rows], out)
                if learns:
                    news.append(new)
        ctx.save_for_backward(v, beta, log_decay, k, q, borders, *news)
        ctx.chunk = chunk
        return y, state.flatten(1, 2)

    @staticmethod
    @once_differentiable
    @exact
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        v, beta, log_decay, k, q, states, *news = ctx.saved_tensors
        groups, chunk, chunks = k.shape[2], ctx.chunk, len(states)
        decays = decays_of(beta, log_decay.double(), groups, chunk)
        dv = torch.empty_like(v, memory_format=torch.contiguous_format)
        dk, dq = torch.empty_like(k), torch.empty_like(q)
        dbeta, earlier = torch.zeros_like(decays.write), torch.zeros_like(decays.write)
        later = torch.zeros_like(decays.write, dtype=torch.float64)
        dstate = dstate.unflatten(1, (groups, -1)).clone(memory_format=torch.contiguous_format)
        for number, rows in enumerate(tiles(v, k.shape[3], chunk)):
            for i in reversed(range(chunks)):
                cut = slice(i * chunk, (i + 1) * chunk)
                dy_i, dv_i = (heads_first(tensor, groups)[rows, ..., cut, :] for tensor in (dy, dv))
                tile, new = _tile(v, k, q, decays, i, rows, chunk), news[number * chunks + i]
                gradients = _backward_chunk(tile, new, states[i, rows], dy_i, dv_i, dstate[rows])
                length = dy_i.shape[3]
                for table, part in zip((dbeta, later, earlier), gradients[:3], strict=True):
                    table[i, rows, ..., :length] = part
                dboth = gradients.dboth.unflatten(0, (-1, groups)).transpose(1, 2)
                dq[rows, cut], dk[rows, cut] = dboth[:, :length], dboth[:, length:]
        # The decay at a token counts for everything that was written before it and is read from it on.
        dlog = later.flip(-1).cumsum(-1).flip(-1).to(v.dtype) + F.pad(earlier.cumsum(-1)[..., :-1], (1, 0))
        dbeta, dlog = (
            rearrange(table, "c b g r L -> b (c L) (g r)")[:, : v.shape[1]].contiguous() for table in (dbeta, dlog)
        )
        return dv, dbeta, dlog, dk, dq, dstate.flatten(1, 2), None


def _tile(v: Tensor, k: Tensor, q: Tensor, decays: Decays, i: int, rows: slice, chunk: int) -> _Tile:
    cut, groups = slice(i * chunk, (i + 1) * chunk), k.shape[2]
    v_i = heads_first(v, groups)[rows, ..., cut, :]
    both = torch.stack([part[rows, cut].transpose(1, 2) for part in (q, k)], 2).flatten(2, 3).flatten(0, 1)
    return _Tile(v_i, both, decays.of(i, rows, v_i.shape[3]))


def _forward_chunk(tile: _Tile, before: Tensor, after: Tensor, y: Tensor) -> Tensor:
    """Fill `y` (b, g, r, L, p) and the state `after` the chunk; returns what was new at each token, ((b g r), L, p)."""
    v, both, decays = tile
    length, powers = v.shape[3], decays.steps.exp2()[..., None]
    reads, holds = (by_token_view(part, v) for part in _past(tile, before).split(length, 1))
    mix, held = _pair(tile, between(decays.steps)).unbind(3)
    value = by_head(v, decays.unrest).view(v.shape).addcmul_(holds, powers, value=-1).flatten(0, 2)
    system = (held * decays.write[..., None, :]).flatten(0, 2)
    # The transposed problem: in this order of numbers in memory LAPACK needs no copies.
    new: Tensor = torch.linalg.solve_triangular(system.mT, value.mT, upper=True, left=False, unitriangular=True).mT
    u = by_head(new.view(v.shape), decays.write)
    out = (mix.flatten(0, 2) @ u).view(v.shape).addcmul_(reads, powers)
    torch.mul(out, decays.rest[..., None], out=y)
    torch.mul(before, decays.whole[..., None, None], out=after)
    as_matrix(after).baddbmm_(by_token(u.view(v.shape), decays.to_end * decays.rest).mT, both[:, length:])
    return new


def _backward_chunk(tile: _Tile, new: Tensor, before: Tensor, dy: Tensor, dv: Tensor, dstate: Tensor) -> _Found:
    """Fill `dv` (b, g, r, L, p), turn `dstate` (b, g, r, p, n) from that after the chunk into that before it."""
    v, both, decays = tile
    length, to_end = v.shape[3], decays.to_end * decays.rest
    keys, new = both[:, length:], new.view(v.shape)
    keep = between(decays.steps)
    pair = _pair(tile, keep)
    mix, held = pair.unbind(3)
    u = by_head(new, decays.write).view(v.shape)
    outer = torch.empty(*v.shape[:3], 2, *v.shape[3:], dtype=v.dtype, device=v.device)  # of y, and of the values held
    torch.mul(dy, decays.rest[..., None], out=outer[..., 0, :, :])

    # y = mix u, and after += (u, decayed to the end) written by the keys
    written = by_token_view(keys @ as_matrix(dstate).mT, v)
    earlier = (written * u).sum(-1).mul_(to_end)
    du = mix.flatten(0, 2).mT @ outer[..., 0, :, :].flatten(0, 2)
    du.view(v.shape).addcmul_(written, to_end[..., None])
    dkeys = by_token(u, to_end) @ as_matrix(dstate)

    # u = beta new, and (1 + held beta) new = value less what the keys held
    system = (held * decays.write[..., None]).flatten(0, 2)
    du = torch.linalg.solve_triangular(system, du.mT, upper=False, left=False, unitriangular=True).mT.view(v.shape)
    dbeta = (du * new).sum(-1)
    torch.mul(du, -decays.write[..., None], out=outer[..., 1, :, :])
    torch.mul(outer[..., 1, :, :], -decays.unrest[..., None], out=dv)
    dpair = (outer.view(-1, 2 * length, v.shape[4]) @ u.flatten(0, 2).mT).view_as(pair)
    through = (dpair[..., 0, :, :] * mix).addcmul_(dpair[..., 1, :, :], held).double()
    later = through.sum(-1).sub_(through.sum(-2))  # row less column: what cancels must do so to the last digit

    # what was read of the state before, and what the keys held of it
    dpast = by_token(outer.flatten(3, 4), decays.steps.exp2().repeat(1, 1, 1, 2))
    later += rearrange(
        dpast * _past(tile, before), "(b g) (two L) (r p) -> b g r L (two p)", two=2, g=v.shape[1], r=v.shape[2]
    ).sum(-1)
    dmatch = dpair.mul_(keep[:, :, :, None]).sum(2).flatten(2, 3).flatten(0, 1)
    dmatch[:, length:].diagonal(dim1=1, dim2=2).zero_()  # a token does not hold itself
    dboth = torch.baddbmm(dmatch @ keys, dpast, as_matrix(before))
    dboth[:, length:] += dkeys.baddbmm_(dmatch.mT, both)

    later[..., -1] += (dstate * before).sum((-1, -2)) * decays.whole
    dstate.mul_(decays.whole[..., None, None])
    as_matrix(dstate).baddbmm_(dpast.mT, both)
    return _Found(dbeta, later, earlier, dboth)


def _past(tile: _Tile, before: Tensor) -> Tensor:
    """What queries read of the state before, over what keys hold in it, without decay ((b g), 2 L, (r p))."""
    return tile.both @ as_matrix(before).mT


def _pair(tile: _Tile, keep: Tensor) -> Tensor:
    """How much queries read, and keys hold, of what each key before them wrote (b, g, r, 2, L, L)."""
    b, g, _, length, _ = tile.v.shape
    match = (tile.both @ tile.both[:, length:].mT).view(b, g, 1, 2, length, length)
    return match * keep[:, :, :, None]
