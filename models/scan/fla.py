"""The gated delta rule by the Triton kernels of flash-linear-attention (package fla-core), on CUDA.

They count offsets in 64 bits, so only the launch grid limits a call: rows of the batch are cut into calls that fit.

Letters as in models/scan/delta_rule.py.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

CHUNKS = (16, 32, 64)  # that the kernels are written for
WIDEST_KEY = 256  # of their tiles
GRID = 65_535  # CUDA's limit on the second axis of a launch: heads of all rows
INSTALL = "pip install fla-core==0.6.0 'triton>=3.5'"


def fla_delta_rule(
    v: Tensor, beta: Tensor, log_decay: Tensor, k: Tensor, q: Tensor, h0: Tensor, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """`longtake.models.scan.delta_rule.delta_rule` by flash-linear-attention. k and q take the dtype of v; the others
    are fp32.

    Raises ValueError for tensors that are not on CUDA and sizes that the kernels do not take, ModuleNotFoundError if
    fla-core or Triton is not installed.
    """
    if chunk not in CHUNKS:
        raise ValueError(f"chunk {chunk}: backend 'fla' takes {', '.join(map(str, CHUNKS))}")
    if k.shape[3] > WIDEST_KEY:
        raise ValueError(f"k is {k.shape[3]} wide: backend 'fla' takes {WIDEST_KEY} at most (config: d_state)")
    if not v.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'fla' runs on CUDA; v is on {v.device}: choose backend 'torch' (config: scan)")
    v, k, q = v.contiguous(), k.to(v.dtype).contiguous(), q.to(v.dtype).contiguous()
    beta, log_decay, h0 = (tensor.float().contiguous() for tensor in (beta, log_decay, h0))
    call = functools.partial(load_kernels(), scale=1.0, output_final_state=True, state_v_first=True, chunk_size=chunk)
    parts = zip(*(part.split(rows_per_call(v.shape[2])) for part in (q, k, v, log_decay, beta, h0)), strict=True)
    outputs = [call(*part[:-1], initial_state=part[-1]) for part in parts]
    if len(outputs) == 1:
        y, state = outputs[0]
        return y, state
    ys, states = zip(*outputs, strict=True)
    return torch.cat(ys), torch.cat(states)


def rows_per_call(heads: int, grid: int = GRID) -> int:
    """Rows of the batch whose heads fit the launch grid. Raises ValueError if one row's do not."""
    if heads > grid:
        raise ValueError(f"{heads} heads are more than the {grid} that one launch of the kernels takes")
    return grid // heads


@functools.cache
def load_kernels() -> Callable[..., tuple[Tensor, Tensor]]:
    """flash-linear-attention's `chunk_gated_delta_rule`.

    Its fp32 products become as exact as PyTorch's on the same device (`torch.set_float32_matmul_precision`), unless
    TRITON_F32_DEFAULT says otherwise: Triton's own choice is TF32, which keeps 10 bits.
    Raises ModuleNotFoundError that says which package is missing and what to do.
    """
    missing = [package for name, package in (("fla", "fla-core"), ("triton", "triton")) if _spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"scan backend 'fla' needs {' and '.join(missing)}: install with `{INSTALL}`, "
            "or choose the backend 'torch' (config: scan)"
        )
    if torch.get_float32_matmul_precision() == "highest":
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    kernels = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return torch.compiler.disable(kernels)  # type: ignore[no-any-return]


def _spec(name: str) -> object:
    return importlib.util.find_spec(name)
