"""The state-space scan of Mamba-2 (SSD): the recurrence to read, and one call with two fast backends.

`torch` runs anywhere (models/scan/chunked.py), `mamba` is the Triton kernels of mamba-ssm (models/scan/mamba.py).

Letters: b batch, l length, h heads, p head width, g groups of heads that share B and C, n state width.

The recurrence, per head (Dao and Gu, "Transformers are SSMs", 2024):

    s_t = exp(dt_t A) s_{t-1} + dt_t x_t B_t^T          state  (p, n)
    y_t = s_t C_t                                       output (p)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from longtake.models.scan.checks import require_call
from longtake.models.scan.chunked import chunked_scan
from longtake.models.scan.mamba import mamba_scan

Backend = Literal["auto", "torch", "mamba"]
SHAPES = {"x": "b l h p", "dt": "b l h", "A": "h", "B": "b l g n", "C": "b l g n", "h0": "b h p n"}


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
    *,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan a sequence with a carried state, in chunks, linear in the length.

    Args:
        x: inputs (b, l, h, p).
        dt: step sizes after softplus (b, l, h), fp32.
        A: decay rates (h), negative, fp32.
        B: write keys (b, l, g, n).
        C: read keys (b, l, g, n).
        h0: state carried in (b, h, p, n), fp32; zeros when None.
        chunk: tokens per chunk; what is fastest on the backend when None. `mamba` takes powers of two from 16 on.
        backend: `auto` is `mamba` on CUDA and `torch` elsewhere.

    Returns:
        Outputs (b, l, h, p) and the state carried out (b, h, p, n) in fp32 (float64 if x is). One call over a
        sequence equals any cut of it with the state handed on, in values and in gradients (those of `h0` too).

    Raises:
        ValueError: shapes that do not fit each other, a chunk or a backend that does not exist, `mamba` off CUDA.
        ModuleNotFoundError: `mamba` without mamba-ssm or Triton; says how to install it.
    """
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "h0": h0}
    require_call("scan", given, SHAPES, chunk, backend, get_args(Backend))
    if h0 is None:
        h0 = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3], dtype=torch.float32)
    chosen = ("mamba" if x.is_cuda else "torch") if backend == "auto" else backend
    call = mamba_scan if chosen == "mamba" else chunked_scan
    return call(x, dt, A, B, C, h0) if chunk is None else call(x, dt, A, B, C, h0, chunk)
