"""The scan by the Triton kernels of mamba-ssm, on CUDA: calls no larger than those kernels can index.

They count in 32 bits and do not check: a larger call returns wrong numbers. So rows of the batch, and if need be the
sequence, are cut into calls that fit, with the state handed on.

Letters as in models/scan/scan.py.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import torch
from torch import Tensor

CHUNK = 256  # largest chunk; a shorter sequence has a chunk of its own size
SMALLEST_CHUNK = 16  # of a matrix product in Triton
GRID = 65_535  # CUDA's limit on the second and third axis of a launch: chunks of all rows
INDEX = 2**31 - 1  # largest offset into a tensor that 32 bits hold
INSTALL = (
    "pip install setuptools wheel packaging ninja einops triton && MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE "
    "pip install --no-build-isolation --no-deps mamba-ssm==2.3.2.post1"
)


def mamba_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """`longtake.models.scan.scan.scan` by mamba-ssm. B and C take the dtype of x; dt, A and the state are fp32.

    Raises ValueError for tensors that are not on CUDA and a chunk that is no power of two, ModuleNotFoundError if
    mamba-ssm or Triton is not installed.
    """
    if chunk is None:
        chunk = min(CHUNK, max(SMALLEST_CHUNK, 1 << (x.shape[1] - 1).bit_length()))
    if chunk < SMALLEST_CHUNK or chunk & (chunk - 1):
        raise ValueError(f"chunk {chunk}: backend 'mamba' takes powers of two from {SMALLEST_CHUNK} on")
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'mamba' runs on CUDA; x is on {x.device}: choose backend 'torch' (config: scan)")
    x, dt, A = x.contiguous(), dt.float().contiguous(), A.float().contiguous()
    B, C, h0 = B.to(x.dtype).contiguous(), C.to(x.dtype).contiguous(), h0.float().contiguous()
    rows, tokens = split_sizes(tuple(x.shape), tuple(B.shape), chunk)
    call = functools.partial(_call, load_kernels(), A, chunk)
    parts = zip(*(part.split(rows) for part in (x, dt, B, C, h0)), strict=True)
    outputs = [_in_time(call, tokens, *part) for part in parts]
    if len(outputs) == 1:
        return outputs[0]
    ys, states = zip(*outputs, strict=True)
    return torch.cat(ys), torch.cat(states)


def split_sizes(
    x: tuple[int, ...], B: tuple[int, ...], chunk: int, *, grid: int = GRID, index: int = INDEX
) -> tuple[int, int]:
    """Rows and tokens of one call for x (b, l, h, p) and B (b, l, g, n), within the limits of the kernels.

    Tokens are all of them unless a single row is too long; then a multiple of the chunk.
    Raises ValueError if not even one chunk of one row fits.
    """
    b, length, h, p = x
    g, n = B[2:]
    # Numbers per chunk and row of x, of B, of what lies between tokens, and of the states at the borders of chunks.
    per_chunk = max(chunk * h * p, chunk * g * n, chunk * g * chunk, h * p * n)
    chunks_per_call = min(grid // g, index // per_chunk)
    if chunks_per_call < 1:
        raise ValueError(f"one chunk of {chunk} tokens of x {x} and B {B} is more than mamba-ssm can index")
    chunks = -(-length // chunk)
    if chunks > chunks_per_call:
        return 1, chunks_per_call * chunk
    return min(b, chunks_per_call // chunks), length


@functools.cache
def load_kernels() -> Callable[..., tuple[Tensor, Tensor]]:
    """mamba-ssm's `mamba_chunk_scan_combined`.

    Its fp32 products become as exact as PyTorch's on the same device (`torch.set_float32_matmul_precision`), unless
    TRITON_F32_DEFAULT says otherwise: Triton's own choice is TF32, which keeps 10 bits.
    Raises ModuleNotFoundError as `import_mamba`.
    """
    if torch.get_float32_matmul_precision() == "highest":
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    kernels = import_mamba("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    # Its autograd functions have broken under torch.compile; the graph breaks here instead.
    return torch.compiler.disable(kernels)  # type: ignore[no-any-return]


def import_mamba(module: str) -> types.ModuleType:
    """A module of mamba-ssm that needs Triton at most, from an installation with or without its CUDA extension.

    Raises ModuleNotFoundError that says which package is missing and what to do.
    """
    missing = [name for name in ("mamba_ssm", "triton") if _spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"scan backend 'mamba' needs {' and '.join(missing)}: install with `{INSTALL}`, "
            "or choose the backend 'torch' (config: scan)"
        )
    try:
        return importlib.import_module(module)
    except ImportError:  # the package's own __init__ wants its CUDA extension; the Triton kernels do not
        _register_empty_package()
        return importlib.import_module(module)


def _spec(name: str) -> ModuleSpec | None:
    return importlib.util.find_spec(name)


def _register_empty_package() -> None:
    """Put a `mamba_ssm` without contents in front of its submodules."""
    spec = _spec("mamba_ssm")
    assert spec is not None and spec.submodule_search_locations is not None
    for name in [name for name in sys.modules if name == "mamba_ssm" or name.startswith("mamba_ssm.")]:
        del sys.modules[name]  # what the failed import left
    package = types.ModuleType("mamba_ssm", "The Triton kernels of mamba-ssm without its CUDA extension.")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["mamba_ssm"] = package


def _in_time(
    call: Callable[..., tuple[Tensor, Tensor]], tokens: int, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Some rows, `tokens` after `tokens`."""
    if x.shape[1] <= tokens:
        return call(x, dt, B, C, state)
    ys = []
    for part in zip(*(tensor.split(tokens, 1) for tensor in (x, dt, B, C)), strict=True):
        y, state = call(*(tensor.contiguous() for tensor in part), state)
        ys.append(y)
    return torch.cat(ys, 1), state


def _call(
    kernels: Callable[..., tuple[Tensor, Tensor]],
    A: Tensor,
    chunk: int,
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    return kernels(x, dt, A, B, C, chunk, initial_states=state, return_final_states=True)
