"""The scan in plain PyTorch, chunk after chunk, with its own backward: the reference backend, made for CPUs.

Letters as in models/ssd.py, and r = h / g heads per group, c chunks, L tokens of one chunk.

What makes it fast on a CPU:
- a tile of rows goes through all of its chunks before the next: everything but the inputs stays in the cache;
- decays are powers of two (`exp2`): `exp` is 4 times slower, and 80 times where it underflows;
- the backward keeps the states at chunk borders only and recomputes the rest, with no graph in between;
- matrix products get contiguous operands, and write into what they are added to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

Step = TypeVar("Step", bound=Callable[..., Any])

CHUNK = 64  # fastest on CPUs among 16..256
TILE = 1 << 17  # numbers per tile and tensor: what fits a core's cache, and is worth the call of an operation


def chunked_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`models.ssd.scan` on any device. Computes in fp32, or float64 if x is; y has the dtype of x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs = (tensor.to(dtype) for tensor in (x, dt, A, B, C, h0))
    y, state = _ChunkedScan.apply(*inputs, min(chunk, x.shape[1]))  # type: ignore[no-untyped-call]
    return y.to(x.dtype), state


class _Decays(NamedTuple):
    """What time does to the state, for all chunks at once: each (c, b, g, r, L), the last chunk padded with dt = 0.

    The log2 of the decay since a chunk's start is split into whole `steps` and the rest, so that differences of it
    are exact: with fast decay it becomes large, and fp32 would keep few digits of what lies between two tokens.
    """

    dt: Tensor
    steps: Tensor  # the log2 of the decay since the chunk's start, rounded to whole numbers
    rest: Tensor  # since_start = 2^steps * rest
    unrest: Tensor  # 1 / rest
    since_start: Tensor
    to_end: Tensor  # the decay from here to the chunk's end
    whole: Tensor  # the decay over the whole chunk (c, b, g, r)

    def of(self, chunk: int, rows: slice, length: int) -> _Decays:
        """One chunk of a tile."""
        tables = [table[chunk, rows, ..., :length] for table in self[:-1]]
        return _Decays._make([*tables, self.whole[chunk, rows]])


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
    decays: _Decays


def _exact(function: Step) -> Step:
    """A step of the scan outside of any autocast: its inputs are as wide as they must be, and the state stays fp32.

    On devices that have no autocast, such as meta, where costs are counted, there is none to leave.
    """

    @functools.wraps(function)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        kind = first.device.type
        if not torch.amp.is_autocast_available(kind):
            return function(ctx, first, *rest)
        with torch.autocast(kind, enabled=False):
            return function(ctx, first, *rest)

    return cast(Step, run)


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    @_exact
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        groups = B.shape[2]
        decays = _decays(dt, A, groups, chunk)
        chunks = len(decays.dt)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        state = h0.unflatten(1, (groups, -1)).clone(memory_format=torch.contiguous_format)
        borders = state.new_empty(chunks if any(ctx.needs_input_grad) else 0, *state.shape)
        for rows in _tiles(x, B, chunk):
            for i in range(chunks):
                before = state[rows]
                if len(borders):
                    before = borders[i, rows].copy_(before)
                out = _heads_first(y, groups)[rows, ..., i * chunk : (i + 1) * chunk, :]
                _forward_chunk(_tile(x, B, C, decays, i, rows, chunk), before, state[rows], out)
        ctx.save_for_backward(x, dt, A, B, C, borders)
        ctx.chunk = chunk
        return y, state.flatten(1, 2)

    @staticmethod
    @once_differentiable
    @_exact
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, states = ctx.saved_tensors
        groups, chunk = B.shape[2], ctx.chunk
        decays = _decays(dt, A, groups, chunk)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        du_x, earlier = torch.zeros_like(decays.dt), torch.zeros_like(decays.dt)
        later = torch.zeros_like(decays.dt, dtype=torch.float64)
        dstate = dstate.unflatten(1, (groups, -1)).clone(memory_format=torch.contiguous_format)
        for rows in _tiles(x, B, chunk):
            for i in reversed(range(len(states))):
                cut = slice(i * chunk, (i + 1) * chunk)
                dy_i, dx_i = (_heads_first(tensor, groups)[rows, ..., cut, :] for tensor in (dy, dx))
                found = _backward_chunk(
                    _tile(x, B, C, decays, i, rows, chunk), states[i, rows], dy_i, dx_i, dstate[rows]
                )
                length = dy_i.shape[3]
                for table, part in zip((du_x, later, earlier), found[:3], strict=True):
                    table[i, rows, ..., :length] = part
                dB[rows, cut], dC[rows, cut] = (part.unflatten(0, (-1, groups)).transpose(1, 2) for part in found[3:])
        # The rate at a token counts for everything that was said before it and is heard from it on.
        drate = later.flip(-1).cumsum(-1).flip(-1).to(dt.dtype) + F.pad(earlier.cumsum(-1)[..., :-1], (1, 0))
        dA = (drate * decays.dt).sum((0, 1, 4)).view_as(A)
        ddt = rearrange(du_x + drate * A.view(groups, -1, 1), "c b g r L -> b (c L) (g r)")[:, : x.shape[1]]
        return dx, ddt, dA, dB, dC, dstate.flatten(1, 2), None


def _forward_chunk(tile: _Tile, before: Tensor, after: Tensor, y: Tensor) -> None:
    """Fill `y` (b, g, r, L, p) and the state `after` the chunk (b, g, r, p, n); it may be the one `before`."""
    x, B, C, decays = tile
    mix = _between(decays.steps).mul_(_match(tile)).flatten(0, 2)
    inside = (mix @ _by_head(x, decays.dt * decays.unrest)).view(x.shape)
    past = _by_token_view(C @ _rows(before).mT, x)
    inside.addcmul_(past, decays.steps.exp2()[..., None])
    torch.mul(inside, decays.rest[..., None], out=y)
    torch.mul(before, decays.whole[..., None, None], out=after)
    _rows(after).baddbmm_(_by_token(x, decays.to_end * decays.dt).mT, B)


def _backward_chunk(tile: _Tile, before: Tensor, dy: Tensor, dx: Tensor, dstate: Tensor) -> _Found:
    """Fill `dx` (b, g, r, L, p), turn `dstate` (b, g, r, p, n) from that after the chunk into that before it."""
    x, B, C, decays = tile
    dy_by_head = _by_head(dy, decays.rest)

    # y = mix (x dt): what tokens of this chunk tell each other
    keep, match = _between(decays.steps), _match(tile)
    dmix = (dy_by_head @ _by_head(x, decays.dt * decays.unrest).mT).view_as(keep).mul_(keep)
    dmatch = dmix.sum(2).flatten(0, 1)
    dB, dC = dmatch.mT @ C, dmatch @ B
    through = dmix.mul_(match).double()  # gradient of the log decay from j to i
    # Row i less column i: of the sum over all rows from t on, what is said after t must cancel to the last digit.
    later = through.sum(-1).sub_(through.sum(-2))
    du = (keep.mul_(match).flatten(0, 2).mT @ dy_by_head).view(x.shape).mul_(decays.unrest[..., None])

    # after += (x dt, decayed to the end) written by B
    written = _by_token_view(B @ _rows(dstate).mT, x)
    earlier = (written * x).sum(-1).mul_(decays.to_end * decays.dt)
    du.addcmul_(written, decays.to_end[..., None])
    dB.baddbmm_(_by_token(x, decays.to_end * decays.dt), _rows(dstate))

    # y += (before, read by C) decayed since the start; a matrix per head, for what each head heard
    heard = (dy_by_head @ before.flatten(0, 2)).view(*x.shape[:4], -1).mul_(decays.steps.exp2()[..., None])
    dC += heard.sum(2).flatten(0, 1)
    later += (heard * C.unflatten(0, (-1, x.shape[1]))[:, :, None]).sum(-1)

    # after += before, decayed over the whole chunk
    later[..., -1] += (dstate * before).sum((-1, -2)) * decays.whole
    dstate.mul_(decays.whole[..., None, None])
    _rows(dstate).baddbmm_(_by_token(dy, decays.since_start).mT, C)

    torch.mul(du, decays.dt[..., None], out=dx)
    return _Found((du * x).sum(-1), later, earlier, dB, dC)


# --- cutting ----------------------------------------------------------------------------------------------


def _decays(dt: Tensor, A: Tensor, groups: int, chunk: int) -> _Decays:
    padded = F.pad(dt, (0, 0, 0, -dt.shape[1] % chunk))
    dt = rearrange(padded, "b (c L) (g r) -> c b g r L", L=chunk, g=groups).contiguous()
    log = (dt.double() * A.double().view(groups, -1, 1) * math.log2(math.e)).cumsum(-1)
    steps = log.round()
    end = log[..., -1:]
    tables = (steps, (log - steps).exp2(), (steps - log).exp2(), log.exp2(), (end - log).exp2(), end[..., 0].exp2())
    return _Decays(dt, *(table.to(dt.dtype) for table in tables))


def _tiles(x: Tensor, B: Tensor, chunk: int) -> Iterator[slice]:
    """Rows of the batch that are worked on together; on a GPU all of them."""
    b, _, h, p = x.shape
    largest = h * max(chunk, p) * max(chunk, B.shape[3])  # of x, the state and what lies between tokens, per row
    rows = max(1, TILE // largest) if x.device.type == "cpu" else b
    yield from (slice(start, min(b, start + rows)) for start in range(0, b, rows))


def _tile(x: Tensor, B: Tensor, C: Tensor, decays: _Decays, i: int, rows: slice, chunk: int) -> _Tile:
    cut = slice(i * chunk, (i + 1) * chunk)
    x_i = _heads_first(x, B.shape[2])[rows, ..., cut, :]
    B_i, C_i = (rearrange(tensor[rows, cut], "b l g n -> (b g) l n") for tensor in (B, C))
    return _Tile(x_i, B_i, C_i, decays.of(i, rows, x_i.shape[3]))


def _heads_first(x: Tensor, groups: int) -> Tensor:
    """View (b, l, h, p) as (b, g, r, l, p)."""
    b, length, h, p = x.shape
    return x.view(b, length, groups, h // groups, p).permute(0, 2, 3, 1, 4)


def _rows(state: Tensor) -> Tensor:
    """View a state (b, g, r, p, n) as one matrix per group ((b g), (r p), n)."""
    return state.view(-1, state.shape[2] * state.shape[3], state.shape[4])


# --- what is made of a chunk ------------------------------------------------------------------------------


def _between(steps: Tensor) -> Tensor:
    """Whole steps of decay from token j to a token i that is not before it, else 0 (b, g, r, L, L)."""
    return (steps[..., :, None] - steps[..., None, :]).exp2_().tril_()


def _match(tile: _Tile) -> Tensor:
    """How much token i reads of what token j writes (b, g, 1, L, L)."""
    b, g, _, length, _ = tile.x.shape
    return (tile.C @ tile.B.mT).view(b, g, 1, length, length)


def _by_head(x: Tensor, factor: Tensor) -> Tensor:
    """x (b, g, r, L, p), times a factor (b, g, r, L), contiguous with one matrix per head ((b g r), L, p)."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.mul(x, factor[..., None], out=out).flatten(0, 2)


def _by_token(x: Tensor, factor: Tensor) -> Tensor:
    """x (b, g, r, L, p), times a factor (b, g, r, L), contiguous with one matrix per group ((b g), L, (r p))."""
    b, g, r, length, p = x.shape
    out = torch.empty(b, g, length, r, p, dtype=x.dtype, device=x.device)
    torch.mul(x.transpose(2, 3), factor.transpose(2, 3)[..., None], out=out)
    return out.view(b * g, length, r * p)


def _by_token_view(matrices: Tensor, like: Tensor) -> Tensor:
    """View ((b g), L, (r p)) as (b, g, r, L, p)."""
    b, g, r, length, p = like.shape
    return matrices.view(b, g, length, r, p).transpose(2, 3)
