"""On a CUDA device: kernels against our own forms at real shapes, attention by mask, a step of the paper's model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.jobs.presets import size
from longtake.models.attention_mask import Reach
from longtake.models.conditions import Conditions
from longtake.models.mixers.attention import attend
from longtake.models.scan.scan import Backend, scan
from longtake.models.world_model import WorldModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(backend: Backend, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, last state and all gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y, state = scan(*leaves, backend=backend)
    draw = torch.Generator("cuda").manual_seed(1)
    weight = torch.randn(y.shape, generator=draw, device="cuda")
    loss = (y.float() * weight).sum() + state.square().sum()
    return [y, state, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("d_state", [64, 128, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_kernels_and_our_form_agree(d_state: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    b, length, h, p = 4, 1000, 8, 64
    x, B, C = (
        torch.randn(b, length, *shape, device="cuda", dtype=dtype) for shape in ((h, p), (1, d_state), (1, d_state))
    )
    dt = torch.nn.functional.softplus(torch.randn(b, length, h, device="cuda") - 4)
    A, h0 = -1 - 15 * torch.rand(h, device="cuda"), torch.randn(b, h, p, d_state, device="cuda")
    reference = run("torch", [part.double() for part in (x, dt, A, B, C, h0)])
    for name, ours, theirs in zip(
        "y state x dt A B C h0".split(), run("mamba", [x, dt, A, B, C, h0]), reference, strict=True
    ):
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("reach", [Reach("window", 11), Reach("chunk", 5), Reach("full")], ids=str)
def test_flex_attention_is_the_linear_form(reach: Reach) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 25, 64, 4, 64, requires_grad=True) for _ in range(3))
    made = []
    for device in ("cpu", "cuda"):
        y = attend(q.to(device), k.to(device), v.to(device), 0, reach)
        made.append([y.cpu(), *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for ours, theirs in zip(*made, strict=True):
        assert (ours - theirs).abs().max() <= 2e-3 * theirs.abs().max()  # TF32 inside


def test_a_training_step_of_the_papers_model() -> None:
    config = size("paper")
    with torch.device("cuda"):
        model = WorldModel(config)
    model.recompute = True
    frames = torch.randn(1, 40, config.channels, config.height, config.width, device="cuda")
    told = Conditions(
        pose=torch.randn(1, 40, 4, device="cuda"), actions=torch.zeros(1, 40, config.action_dim, device="cuda")
    )
    with torch.autocast("cuda", torch.bfloat16):
        y, memory = model(frames, torch.rand(1, 40, device="cuda"), told)
    y.float().square().mean().backward()
    assert memory is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
