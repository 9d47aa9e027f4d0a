"""On a CUDA device: the engine at every ZeRO stage, its precision, and going on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from longtake.jobs.presets import size
from longtake.models.analysis.cost import conditions_for
from longtake.models.world_model import WorldModel
from longtake.training.engine import Engine
from longtake.training.engine_config import EngineConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS, FRAMES = 4, 16


def engine_of(config: EngineConfig) -> Engine:
    torch.manual_seed(0)
    return Engine(WorldModel(size("tiny")), config, steps=STEPS, device="cuda")


def trained(engine: Engine, until: int) -> float:
    config, loss = size("tiny"), torch.zeros(())
    told = conditions_for(config, FRAMES, 2).to("cuda")
    while engine.done < until:
        draw = torch.Generator().manual_seed(engine.done)
        x = torch.randn(2, FRAMES, config.channels, config.height, config.width, generator=draw)
        prediction, _ = engine(x.cuda(), torch.rand(2, FRAMES, generator=draw).cuda(), told)
        loss = (prediction.float() - x.cuda()).square().mean()
        engine.backward(loss)
        engine.step()
    return loss.item()


@pytest.mark.parametrize(
    ("backend", "zero", "precision"),
    [
        ("torch", 0, "auto"),
        ("torch", 0, "fp32"),
        ("deepspeed", 0, "auto"),
        ("deepspeed", 1, "auto"),
        ("deepspeed", 2, "auto"),
        ("deepspeed", 3, "auto"),
        ("deepspeed", 2, "bf16"),
        ("deepspeed", 3, "bf16"),
    ],
)
def test_a_run_goes_on_from_its_checkpoint(
    tmp_path: Path,
    backend: Literal["torch", "deepspeed"],
    zero: Literal[0, 1, 2, 3],
    precision: Literal["auto", "fp32", "bf16"],
) -> None:
    """Near, not bitwise: kernels on a card add in any order without MAMBA_DETERMINISTIC=1."""
    config = EngineConfig(backend=backend, zero=zero, precision=precision, warmup=1)
    straight = engine_of(config)
    trained(straight, STEPS // 2)
    straight.save(tmp_path / "half")
    loss = trained(straight, STEPS)
    straight.save(tmp_path / "whole")
    again = engine_of(config)
    again.load(tmp_path / "half")
    assert again.done == STEPS // 2
    assert trained(again, STEPS) == pytest.approx(loss, rel=1e-3)
    again.save(tmp_path / "again")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "whole"))
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert all(torch.allclose(ours[name], theirs[name], atol=5e-3) for name in ours)
