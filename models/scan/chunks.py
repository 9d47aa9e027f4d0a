"""What scans in chunks share on a CPU: cutting into tiles and chunks, decays, layouts that products are fast in.

Letters: b batch, l length, h heads, p head width, g groups of heads that share keys, r = h / g heads per group, n state
width, c chunks, L tokens of one chunk.
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

Step = TypeVar("Step", bound=Callable[..., Any])

TILE = 1 << 17  # numbers per tile and tensor: what fits a core's cache, and is worth the call of an operation


class Decays(NamedTuple):
    """What time does to the state, for all chunks at once: each (c, b, g, r, L), the last chunk padded with zeros.

    The log2 of the decay since a chunk's start is split into whole `steps` and the rest, so that differences of it
    are exact: with fast decay it becomes large, and fp32 would keep few digits of what lies between two tokens.
    """

    write: Tensor  # how much of each token is written: dt, or beta
    steps: Tensor  # the log2 of the decay since the chunk's start, rounded to whole numbers
    rest: Tensor  # since_start = 2^steps * rest
    unrest: Tensor  # 1 / rest
    since_start: Tensor
    to_end: Tensor  # the decay from here to the chunk's end
    whole: Tensor  # the decay over the whole chunk (c, b, g, r)

    def of(self, chunk: int, rows: slice, length: int) -> Decays:
        """One chunk of a tile."""
        tables = [table[chunk, rows, ..., :length] for table in self[:-1]]
        return Decays._make([*tables, self.whole[chunk, rows]])


def exact(function: Step) -> Step:
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


def decays_of(write: Tensor, log_decay: Tensor, groups: int, chunk: int) -> Decays:
    """From what is written and the log of each token's decay in float64, both (b, l, h)."""

    def chunks(values: Tensor) -> Tensor:
        padded = F.pad(values, (0, 0, 0, -values.shape[1] % chunk))
        return rearrange(padded, "b (c L) (g r) -> c b g r L", L=chunk, g=groups)

    log = (chunks(log_decay) * math.log2(math.e)).cumsum(-1)
    steps = log.round()
    end = log[..., -1:]
    tables = (steps, (log - steps).exp2(), (steps - log).exp2(), log.exp2(), (end - log).exp2(), end[..., 0].exp2())
    return Decays(chunks(write).contiguous(), *(table.to(write.dtype) for table in tables))


def tiles(x: Tensor, width: int, chunk: int) -> Iterator[slice]:
    """Rows of the batch of x (b, l, h, p) that are worked on together; on a GPU all of them."""
    b, _, h, p = x.shape
    largest = h * max(chunk, p) * max(chunk, width)  # of x, the state and what lies between tokens, per row
    rows = max(1, TILE // largest) if x.device.type == "cpu" else b
    yield from (slice(start, min(b, start + rows)) for start in range(0, b, rows))


def heads_first(x: Tensor, groups: int) -> Tensor:
    """View (b, l, h, p) as (b, g, r, l, p)."""
    b, length, h, p = x.shape
    return x.view(b, length, groups, h // groups, p).permute(0, 2, 3, 1, 4)


def as_matrix(state: Tensor) -> Tensor:
    """View a state (b, g, r, p, n) as one matrix per group ((b g), (r p), n)."""
    return state.view(-1, state.shape[2] * state.shape[3], state.shape[4])


def between(steps: Tensor) -> Tensor:
    """Whole steps of decay from token j to a token i that is not before it, else 0 (b, g, r, L, L)."""
    return (steps[..., :, None] - steps[..., None, :]).exp2_().tril_()


def by_head(x: Tensor, factor: Tensor) -> Tensor:
    """x (b, g, r, L, p), times a factor (b, g, r, L), contiguous with one matrix per head ((b g r), L, p)."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.mul(x, factor[..., None], out=out).flatten(0, 2)


def by_token(x: Tensor, factor: Tensor) -> Tensor:
    """x (b, g, r, L, p), times a factor (b, g, r, L), contiguous with one matrix per group ((b g), L, (r p))."""
    b, g, r, length, p = x.shape
    out = torch.empty(b, g, length, r, p, dtype=x.dtype, device=x.device)
    torch.mul(x.transpose(2, 3), factor.transpose(2, 3)[..., None], out=out)
    return out.view(b * g, length, r * p)


def by_token_view(matrices: Tensor, like: Tensor) -> Tensor:
    """View ((b g), L, (r p)) as (b, g, r, L, p)."""
    b, g, r, length, p = like.shape
    return matrices.view(b, g, length, r, p).transpose(2, 3)
