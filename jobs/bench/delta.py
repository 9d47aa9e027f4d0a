"""The gated delta rule on a CPU beside our Mamba-2 scan at equal shapes, forward and backward, fp32, one thread.

`longtake.models.scan.delta_rule.delta_rule` against `longtake.models.scan.scan.scan`, in turns, with as many heads,
values, state dimensions and groups of keys. `forward+backward` are medians in CPU seconds, `time` the median over
rounds of the delta rule's / Mamba-2's (the bar: at most 2), `memory` the extra memory of one forward and backward. With
`fla: true` also flash-linear-attention's own form for CPUs, `naive_chunk_gated_delta_rule`, where fla-core is
installed. Half a minute.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from longtake.config import Config
from longtake.jobs.bench import scan
from longtake.jobs.bench.scan import Shape
from longtake.jobs.bench.timing import Row, in_turns, one_thread, speedup
from longtake.models.scan.delta_rule import delta_rule

Positive = Annotated[int, Field(ge=1)]
DELTA, MAMBA, FLA = "delta rule", "Mamba-2 scan", "fla naive chunk"


class Settings(Config):
    """What to scan, and how often."""

    rounds: Positive = Field(9, description="measured calls of each contestant")
    memory: bool = Field(True, description="also the extra memory, each contestant in a process of its own")
    fla: bool = Field(False, description="also fla-core's form for CPUs; it must be installed")
    shapes: list[Shape] = scan.SHAPES


def run(settings: Settings) -> list[Row]:
    """Measure every shape."""
    with one_thread():
        return [row for shape in settings.shapes for row in _measure(shape, settings)]


def _measure(shape: Shape, settings: Settings) -> list[Row]:
    names = (DELTA, MAMBA, FLA) if settings.fla else (DELTA, MAMBA)
    seconds = in_turns({name: prepare(shape, name) for name in names}, settings.rounds)
    rows = scan.medians(shape, "forward+backward", seconds)
    rows += scan.memories(shape, prepare, names) if settings.memory else []
    rows.append(
        Row(f"{shape}: {DELTA} over {MAMBA}", "time", speedup(seconds[MAMBA], seconds[DELTA]), "times", settings.rounds)
    )
    if settings.fla:
        ratio = speedup(seconds[DELTA], seconds[FLA])
        rows.append(Row(f"{shape}: {DELTA} over {FLA}", "speedup", ratio, "times", settings.rounds))
    return rows


def prepare(shape: Shape, name: str) -> Callable[[], object]:
    """One forward and backward, ready to be called."""
    if name == MAMBA:
        return scan.prepare(shape, scan.OURS)
    return scan.prepared(delta_rule if name == DELTA else _fla, _inputs(shape))


def _inputs(shape: Shape) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    b, length, h, p, n = shape.batch, shape.length, shape.heads, shape.headdim, shape.d_state
    v = torch.randn(b, length, h, p, generator=draw)
    beta = torch.randn(b, length, h, generator=draw).sigmoid()
    log_decay = -torch.nn.functional.softplus(torch.randn(b, length, h, generator=draw) - 4)
    keys = [torch.randn(b, length, shape.groups, n, generator=draw) for _ in range(2)]
    k, q = (torch.nn.functional.normalize(part, dim=-1) for part in keys)
    h0 = torch.randn(b, h, p, n, generator=draw)
    return [tensor.requires_grad_() for tensor in (v, beta, log_decay, k, q, h0)]


def _fla(v: Tensor, beta: Tensor, log_decay: Tensor, k: Tensor, q: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """fla-core's form, called as its authors do: keys for every head, chunks of 64, states transposed."""
    naive = importlib.import_module("fla.ops.gated_delta_rule.naive").naive_chunk_gated_delta_rule
    heads = v.shape[2] // k.shape[2]
    k, q = k.repeat_interleave(heads, 2), q.repeat_interleave(heads, 2)
    options = {"chunk_size": 64, "scale": 1.0, "initial_state": h0.mT, "output_final_state": True}
    y, state = naive(q, k, v, log_decay, beta, **options)
    return y, state.mT
