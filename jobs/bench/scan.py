"""The state-space scan on a CPU, forward and backward with all gradients, fp32, one thread.

Ours (models/scan/chunked.py) against mamba-ssm's `ssd_minimal_discrete`, the plain PyTorch form that its authors
publish, in turns. `forward` and `forward+backward` are medians in CPU seconds, `speedup` is the median over rounds
of theirs / ours, `memory` the extra memory of one forward and backward. Shapes: a long sequence with B and C shared
by all heads (Mamba-2's own choice) and with a B and C per head; then the demo's many short sequences.
About a minute.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from longtake.config import Config
from longtake.jobs.bench.timing import Row, extra_memory, in_turns, one_thread, speedup
from longtake.models.scan.mamba import import_mamba
from longtake.models.scan.scan import scan

Positive = Annotated[int, Field(ge=1)]
Forward = Callable[..., tuple[Tensor, Tensor]]
OURS, THEIRS = "longtake", "ssd_minimal_discrete"


class Shape(Config):
    """Sizes of one problem."""

    batch: Positive
    length: Positive
    heads: Positive
    headdim: Positive
    d_state: Positive
    groups: Positive = 1

    def __str__(self) -> str:
        return f"b{self.batch} l{self.length} h{self.heads} p{self.headdim} n{self.d_state} g{self.groups}"


SHAPES = [
    Shape(batch=8, length=2048, heads=8, headdim=64, d_state=64),
    Shape(batch=8, length=2048, heads=8, headdim=64, d_state=64, groups=8),
    Shape(batch=256, length=32, heads=4, headdim=48, d_state=64),
    Shape(batch=256, length=4, heads=4, headdim=48, d_state=64),
]


class Settings(Config):
    """What to scan, and how often."""

    rounds: Positive = Field(9, description="measured calls of each contestant")
    memory: bool = Field(True, description="also the extra memory, each contestant in a process of its own")
    shapes: list[Shape] = SHAPES


def run(settings: Settings) -> list[Row]:
    """Measure every shape."""
    with one_thread():
        return [row for shape in settings.shapes for row in _measure(shape, settings)]


def _measure(shape: Shape, settings: Settings) -> list[Row]:
    rounds, names = settings.rounds, (OURS, THEIRS)
    forward = in_turns({name: partial(_forward, name, _inputs(shape)) for name in names}, rounds)
    both = in_turns({name: prepare(shape, name) for name in names}, rounds)
    rows = [*medians(shape, "forward", forward), *medians(shape, "forward+backward", both)]
    rows += memories(shape, prepare, names) if settings.memory else []
    ratio = speedup(both[OURS], both[THEIRS])
    return [*rows, Row(f"{shape}: {OURS} over {THEIRS}", "speedup", ratio, "times", rounds)]


def medians(shape: Shape, metric: str, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """A row for each contestant, of its CPU seconds in all rounds."""
    return [Row(f"{shape}: {name}", metric, statistics.median(each), "s", len(each)) for name, each in seconds.items()]


def memories(shape: Shape, prepare: Callable[[Shape, str], Callable[[], object]], names: Iterable[str]) -> list[Row]:
    """A row for each contestant, of the extra memory of one call, in a process of its own."""
    return [
        Row(f"{shape}: {name}", "memory", extra_memory(partial(prepare, shape, name)) / 1e6, "MB", 1) for name in names
    ]


def prepare(shape: Shape, name: str) -> Callable[[], object]:
    """One forward and backward, ready to be called."""
    return prepared(_contestant(name), _inputs(shape))


def prepared(forward: Forward, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """One forward and backward of a scan, ready to be called."""
    weights = [torch.randn(part.shape) for part in forward(*(tensor.detach() for tensor in inputs))]
    return lambda: torch.autograd.grad(forward(*inputs), inputs, weights)


@torch.no_grad()
def _forward(name: str, inputs: list[Tensor]) -> object:
    return _contestant(name)(*inputs)


def _inputs(shape: Shape) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    b, length, h, p, n = shape.batch, shape.length, shape.heads, shape.headdim, shape.d_state
    x = torch.randn(b, length, h, p, generator=draw)
    dt = torch.nn.functional.softplus(torch.randn(b, length, h, generator=draw) - 4)
    A = -1 - 15 * torch.rand(h, generator=draw)
    B, C = (torch.randn(b, length, shape.groups, n, generator=draw) for _ in range(2))
    h0 = torch.randn(b, h, p, n, generator=draw)
    return [tensor.requires_grad_() for tensor in (x, dt, A, B, C, h0)]


def _contestant(name: str) -> Forward:
    return partial(scan, backend="torch") if name == OURS else _minimal


def _minimal(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """mamba-ssm's form, called as its authors do: a B and C for every head, chunks of 64."""
    minimal: Forward = import_mamba("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    heads_per_group = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(heads_per_group, 2), C.repeat_interleave(heads_per_group, 2)
    return minimal(x * dt[..., None], A * dt, B, C, min(64, x.shape[1]), h0[:, None])
