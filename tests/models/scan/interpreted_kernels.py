"""Our scan and mixer against the real mamba-ssm, on a CPU; prints the errors as JSON. Run by test_mamba_parity.py.

Triton's interpreter runs the kernels program after program, fp32 only. It wants a CUDA device to be told of twice.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import types
from unittest import mock

import torch
from torch import Tensor

from longtake.models.mixers.ssm import BlockSSM
from longtake.models.scan import mamba
from longtake.models.scan.scan import scan
from tests.models.scan.test_scan import NAMES, outputs_and_gradients, problem, worst

torch.set_num_threads(1)
torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[misc, assignment]
torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=1)  # type: ignore[assignment, return-value]


def scans(length: int, groups: int, decay: float) -> dict[str, float]:
    """Largest errors of outputs and gradients; the weights of the loss give the final state a gradient of its own."""
    inputs = problem(length, groups, decay, torch.float32, b=2, h=2, p=16, n=16)
    theirs = outputs_and_gradients(scan, inputs, backend="mamba", chunk=16)
    ours = outputs_and_gradients(scan, inputs, backend="torch", chunk=64)
    return {name: worst(one, other) for name, one, other in zip(NAMES, ours, theirs, strict=True)}


def split_scans(grid: int, calls: int) -> dict[str, float]:
    """One call of the kernels against several, cut in rows and in time."""
    inputs = problem(40, 1, 0.1, torch.float32, b=2, h=2, p=16, n=16)
    whole = outputs_and_gradients(scan, inputs, backend="mamba", chunk=16)
    limited = functools.partial(mamba.split_sizes, grid=grid)
    with (
        mock.patch.object(mamba, "split_sizes", limited),
        mock.patch.object(mamba, "_call", wraps=mamba._call) as made,
    ):
        parts = outputs_and_gradients(scan, inputs, backend="mamba", chunk=16)
    assert made.call_count == calls, f"{made.call_count} calls, {calls} expected"
    return {name: worst(one, other) for name, one, other in zip(NAMES, parts, whole, strict=True)}


def mixers() -> dict[str, float]:
    """Our mixer with one token per frame against mamba-ssm's Mamba2 with the same parameters, by name."""
    hub = types.ModuleType("huggingface_hub")  # not installed; Mamba2 inherits its download methods, of no use here
    hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault("huggingface_hub", hub)
    from mamba_ssm.modules.mamba2 import Mamba2

    torch.manual_seed(0)
    options = {"d_state": 16, "headdim": 16, "expand": 2}
    theirs = Mamba2(32, ngroups=1, chunk_size=16, use_mem_eff_path=False, layer_idx=0, **options)
    torch.nn.init.normal_(theirs.norm.weight, 1, 0.2)
    torch.nn.init.normal_(theirs.D, 1, 0.2)
    ours = BlockSSM(32, (1, 1), (1, 1), d_conv=4, **options)
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(1, 34, 32, requires_grad=True)
    weights = torch.randn(1, 34, 32)

    def measured(module: torch.nn.Module, y: Tensor) -> dict[str, Tensor]:
        names, parameters = zip(*module.named_parameters(), strict=True)
        return dict(
            zip(["y", "u", *names], [y, *torch.autograd.grad((y * weights).sum(), [u, *parameters])], strict=True)
        )

    expected = measured(theirs, theirs(u))
    found = measured(ours, ours(u[:, :, None], (), 0, u)[0][:, :, 0])
    return {name: worst(found[name], expected[name]) for name in expected}


if __name__ == "__main__":
    cases = {
        "scan, one group": scans(34, 1, 0.1),
        "scan, two groups": scans(33, 2, 1.0),
        "scan, shorter than a chunk": scans(5, 1, 0.1),
        "scan, cut by rows": split_scans(grid=3, calls=2),
        "scan, cut in time": split_scans(grid=2, calls=4),
        "mixer": mixers(),
    }
    json.dump(cases, sys.stdout)
