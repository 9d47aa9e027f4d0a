"""On a CUDA device: kernels against our own forms in fp64, attention by mask, and the paper's model at its real length.

Kernels are compiled and tuned when they are first met, which takes minutes: hence the time-outs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.jobs.presets import size
from longtake.models import attention_flex
from longtake.models.attention_mask import Reach
from longtake.models.conditions import Conditions
from longtake.models.config import ModelConfig, SamplerConfig
from longtake.models.mixers.attention import attend
from longtake.models.rollout import prefill, rollout
from longtake.models.scan.scan import Backend, scan
from longtake.models.world_model import WorldModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = "y state x dt A B C h0".split()


def run(backend: Backend, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, last state and all gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y, state = scan(*leaves, backend=backend)
    draw = torch.Generator("cuda").manual_seed(1)
    weight = torch.randn(y.shape, generator=draw, device="cuda")
    loss = (y.float() * weight).sum() + state.square().sum()
    return [y, state, *torch.autograd.grad(loss, leaves)]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, of the largest magnitude."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("headdim", [32, 64])
@pytest.mark.parametrize("d_state", [16, 64, 128, 256])  # 16: a nested state of few dimensions
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_kernels_and_our_form_agree(headdim: int, d_state: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    b, length, h = 4, 1000, 8
    shapes = ((h, headdim), (1, d_state), (1, d_state))
    x, B, C = (torch.randn(b, length, *shape, device="cuda", dtype=dtype) for shape in shapes)
    dt = torch.nn.functional.softplus(torch.randn(b, length, h, device="cuda") - 4)
    A, h0 = -1 - 15 * torch.rand(h, device="cuda"), torch.randn(b, h, headdim, d_state, device="cuda")
    reference = run("torch", [part.double() for part in (x, dt, A, B, C, h0)])
    for name, ours, theirs in zip(NAMES, run("mamba", [x, dt, A, B, C, h0]), reference, strict=True):
        assert apart(ours, theirs) <= tolerance, name


@pytest.mark.parametrize("kept", [0, 5])
@pytest.mark.parametrize("reach", [Reach("window", 11), Reach("chunk", 5), Reach("full")], ids=str)
def test_flex_attention_is_the_linear_form(reach: Reach, kept: int) -> None:
    """Also where there are more keys than queries: frames of the memory."""
    torch.manual_seed(0)
    q = torch.randn(2, 25, 64, 4, 64, requires_grad=True)
    k, v = (torch.randn(2, 25 + kept, 64, 4, 64, requires_grad=True) for _ in range(2))
    made = []
    for device in ("cpu", "cuda"):
        y = attend(q.to(device), k.to(device), v.to(device), kept, reach)
        made.append([y.cpu(), *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for ours, theirs in zip(*made, strict=True):
        assert (ours - theirs).abs().max() <= 2e-3 * theirs.abs().max()  # TF32 inside


def test_a_ninth_shape_is_compiled_like_the_first() -> None:
    """Dynamo's limit of eight made it compute all scores: at 192 frames of 64 tokens that is 2.4 GB for these heads."""
    reach = Reach("window", 3)
    for frames in (*range(8, 24, 2), 192):
        q, k, v = (torch.randn(1, frames, 64, 4, 64, device="cuda") for _ in range(3))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            attention_flex.flex_attend(q, k, v, 0, reach)
    assert torch.cuda.max_memory_allocated() - before < 8 * q.nbytes


def clip(config: ModelConfig, frames: int) -> tuple[Tensor, Tensor, Conditions]:
    x = torch.randn(1, frames, config.channels, config.height, config.width, device="cuda")
    pose, actions = torch.randn(1, frames, 4), torch.zeros(1, frames, config.action_dim)
    return x, torch.rand(1, frames, device="cuda"), Conditions(pose=pose, actions=actions).to("cuda")


def test_a_training_step_of_the_papers_model() -> None:
    config = size("paper")
    with torch.device("cuda"):
        model = WorldModel(config)
    model.recompute = True
    with torch.autocast("cuda", torch.bfloat16):
        y, memory = model(*clip(config, 400))
    y.float().square().mean().backward()
    assert memory is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_model_makes_on_a_card_what_it_makes_on_a_cpu() -> None:
    """Prefill, a rollout and a nested state of fewer dimensions, in fp32; bf16 stays near."""
    torch.manual_seed(0)
    config = size("tiny")
    model = WorldModel(config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    x, _, told = clip(config, 24)
    made = {}
    for name, device in (("cpu", "cpu"), ("fp32", "cuda"), ("bf16", "cuda")):
        model.to(device)
        with torch.autocast("cuda", torch.bfloat16, enabled=name == "bf16"):
            for width in (config.d_state, config.d_state // 2):
                memory = prefill(
                    model, x[:, :16].to(device), told.frames(0, 16).to(device), model.empty_memory(1, width)
                )
                ahead, draw = told.frames(16, 24).to(device), torch.Generator().manual_seed(0)
                frames, after = rollout(model, ahead, 8, memory, SamplerConfig(steps=2), [draw])
                made[name, width] = frames.float().cpu()
                held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in after.to_dict().values()}
                assert sum(held.values()) <= 1.05 * after.nbytes["total"] + 4096
    for (name, width), frames in made.items():
        assert apart(frames, made["cpu", width]) < (0.1 if name == "bf16" else 1e-2), (name, width)
