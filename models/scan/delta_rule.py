"""The gated delta rule: the recurrence to read, and one call with two fast backends. A scan that overwrites.

Where Mamba-2 adds to what a key holds, this takes away what the key held first: writing twice leaves the last value.
`torch` runs anywhere (models/scan/delta_chunked.py), `fla` is the Triton kernels of flash-linear-attention
(models/scan/fla.py). The face is that of `longtake.models.scan.scan.scan`, with the same state.

Letters: b batch, l length, h heads, p head width, g groups of heads that share keys and queries, n state width.

The recurrence, per head (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024):

    s_t = a_t s_{t-1} (1 - beta_t k_t k_t^T) + beta_t v_t k_t^T      state  (p, n)
    y_t = s_t q_t                                                    output (p)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from longtake.models.scan.checks import require_call
from longtake.models.scan.delta_chunked import chunked_delta_rule
from longtake.models.scan.fla import fla_delta_rule

Backend = Literal["auto", "torch", "fla"]
SHAPES = {"v": "b l h p", "beta": "b l h", "log_decay": "b l h", "k": "b l g n", "q": "b l g n", "h0": "b h p n"}


def delta_rule_reference(
    v: Tensor, beta: Tensor, log_decay: Tensor, k: Tensor, q: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence, one token after another: the specification that `delta_rule` is tested against.

    Shapes as in `delta_rule`. Runs in the dtype of `v`; use float64 for a reference.
    """
    heads_per_group = v.shape[2] // k.shape[2]
    k, q = k.repeat_interleave(heads_per_group, 2), q.repeat_interleave(heads_per_group, 2)
    state = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3]) if h0 is None else h0.to(v.dtype)
    outputs = []
    for t in range(v.shape[1]):
        key, query, strength = k[:, t, :, None, :], q[:, t, :, None, :], beta[:, t, :, None]
        state = state * torch.exp(log_decay[:, t])[..., None, None]
        held = (state * key).sum(-1)
        state = state + (strength * (v[:, t] - held))[..., None] * key
        outputs.append((state * query).sum(-1))
    return torch.stack(outputs, 1), state


def delta_rule(
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    k: Tensor,
    q: Tensor,
    h0: Tensor | None = None,
    *,
    chunk: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan a sequence by the gated delta rule with a carried state, in chunks, linear in the length.

    Args:
        v: values (b, l, h, p).
        beta: how much of what a key held is replaced (b, l, h), fp32: 0 nothing, 1 all of it (for keys of length 1).
        log_decay: log of what each token leaves of the state (b, l, h), fp32, at most 0.
        k: keys (b, l, g, n), of length 1 at most: longer ones make the state grow.
        q: queries (b, l, g, n).
        h0: state carried in (b, h, p, n), fp32; zeros when None.
        chunk: tokens per chunk; what is fastest on the backend when None. `fla` takes 16, 32 and 64.
        backend: `auto` is `fla` on CUDA and `torch` elsewhere.

    Returns:
        Outputs (b, l, h, p) and the state carried out (b, h, p, n) in fp32 (float64 if v is). One call over a
        sequence equals any cut of it with the state handed on, in values and in gradients (those of `h0` too).

    Raises:
        ValueError: shapes that do not fit each other, a chunk or a backend that does not exist, `fla` off CUDA.
        ModuleNotFoundError: `fla` without flash-linear-attention or Triton; says how to install it.
    """
    given = {"v": v, "beta": beta, "log_decay": log_decay, "k": k, "q": q, "h0": h0}
    require_call("delta_rule", given, SHAPES, chunk, backend, get_args(Backend))
    if h0 is None:
        h0 = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3], dtype=torch.float32)
    chosen = ("fla" if v.is_cuda else "torch") if backend == "auto" else backend
    call = fla_delta_rule if chosen == "fla" else chunked_delta_rule
    return call(v, beta, log_decay, k, q, h0) if chunk is None else call(v, beta, log_decay, k, q, h0, chunk)
