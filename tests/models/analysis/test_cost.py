"""Costs and horizon: what is extrapolated equals what is counted, and what is counted equals arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longtake.models.analysis.cost import (
    Costs,
    _count,
    conditions_for,
    crossing,
    footprint,
    longest_window,
    remembered,
    show,
)
from longtake.models.analysis.reach import fresh_horizon, horizon
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.memory import Memory
from longtake.models.world_model import Layer, WorldModel
from tests.models.families import CAUSAL, SIZES, inputs, make


def config_of(family: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{**SIZES, **CAUSAL[family], **changes})


def passes(family: str, frames: int, memory: Memory | None = None, backward: bool = False) -> float:
    """Operations of a pass over that many frames, counted in one go (on a CPU, its fused attention is not counted)."""
    with torch.device("meta"):
        model, x, level = WorldModel(config_of(family)), torch.empty(1, frames, 3, 8, 8), torch.empty(1, frames)

        def run() -> None:
            y, _ = model(x, level, conditions_for(model.config, frames), memory)
            if backward:
                y.sum().backward()

        return _count(run)


@pytest.mark.parametrize(
    ("family", "frames"),  # whole chunks of the scan and of the attention
    [("block_ssm", 64), ("block_ssm_chunks", 192), ("block_ssm_convolution", 64), ("block_ssm_shared", 64),
     ("mamba_local", 64), ("causal_window", 9), ("causal_full", 9)],
)  # fmt: skip
def test_training_operations_follow_the_curve(family: str, frames: int) -> None:
    assert Costs(config_of(family)).training_flops(frames) == pytest.approx(passes(family, frames, backward=True), 1e-4)


@pytest.mark.parametrize("context", [3, 30])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_frame_costs_and_carries_what_it_does_after_real_frames(family: str, context: int) -> None:
    costs, model = Costs(config_of(family)), make(family)
    x, level, conditions = inputs(context)
    with torch.no_grad():
        memory = model(x[:1], level[:1], conditions._map(lambda part: part[:1]))[1]
        assert memory is not None
        together = model.config.chunk or 1
        one = passes(family, together, memory.map(lambda part: part.to("meta"))) / together
        for steps, guidance, calls in ((4, 1.0, 5), (2, 2.0, 5), (2, 1.0, 3)):
            sampler = SamplerConfig(steps=steps, guidance=guidance)
            assert costs.frame_flops(context, sampler) == pytest.approx(calls * one)
    assert costs.carried(context) == memory.nbytes
    mine = remembered(model, context, streams=2)
    assert {part: 2 * size for part, size in memory.nbytes.items()} == mine.nbytes
    assert mine.frames == memory.frames


def test_operations_by_hand() -> None:
    """A layer of full attention: six operations per weight and token, and twelve per pair of tokens and channel."""
    config = ModelConfig(**{**SIZES, "layers": [LayerConfig(mixer="attention", local="none")]})
    tokens, frames, dim = 4, 6, 16
    matrices = 4 * dim**2 + 2 * 4 * dim**2
    pairs = sum(tokens * tokens * (frame + 1) for frame in range(frames))
    layer = 6 * matrices * tokens * frames + 12 * pairs * dim + 6 * dim * 6 * dim * frames
    costs = Costs(config)
    costs.training_flops(1)
    (curve,) = costs._curves.values()
    assert curve(frames) == pytest.approx(layer, rel=1e-9)


def test_depth_wise_convolutions_cost_thrice_backward_and_forward() -> None:
    with torch.device("meta"):
        convolution = torch.nn.Conv1d(64, 64, 4, groups=64)
        x = torch.empty(1, 64, 103, requires_grad=True)
    forward = 2 * 64 * 4 * 100
    assert _count(lambda: convolution(x)) == forward
    assert _count(lambda: convolution(x).sum().backward()) == 3 * forward
    with FlopCounterMode(display=False) as pytorch:  # once this is right our own formula can go
        convolution(x).sum().backward()
    assert pytorch.get_total_flops() > 10 * forward


def test_where_two_costs_cross() -> None:
    assert crossing(lambda n: 100.0, lambda n: 7.0 * n) == 15
    assert crossing(lambda n: 100.0, lambda n: 50.0) is None
    assert crossing(lambda n: 1.0, lambda n: 2.0) == 1


def test_in_chunks_a_context_is_of_whole_ones() -> None:
    costs = Costs(config_of("causal_full", chunk=3, layers=[LayerConfig(mixer="attention")]))
    assert costs.carried(31) == costs.carried(33) != costs.carried(34)
    assert costs.frame_flops(31, SamplerConfig()) < costs.frame_flops(33, SamplerConfig())  # linear from two of them
    assert costs.frame_flops(4, SamplerConfig()) == costs.frame_flops(6, SamplerConfig())


def test_what_carries_no_memory_has_no_such_costs() -> None:
    with pytest.raises(ValueError, match="causal: false"):
        Costs(config_of("mamba", causal=False))
    with pytest.raises(ValueError, match="frames: 0"):
        remembered(make("mamba"), 0)


def test_half_lives_are_those_of_the_state() -> None:
    """Nothing written: after a half-life of tokens, the state is half."""
    layer = make("block_ssm").layers[1]
    assert isinstance(layer, Layer) and layer.scan is not None
    ssm = layer.scan
    tokens = ssm.half_lives() * math.prod(ssm.block)
    rate = torch.nn.functional.softplus(ssm.dt_bias) * ssm.A_log.exp()
    assert torch.allclose((-rate * tokens).exp(), torch.full_like(tokens, 0.5))


def test_the_horizon_is_in_frames() -> None:
    found = fresh_horizon(config_of("block_ssm", headdim=1))
    assert set(found.half_lives) == {0, 1} and found.forgets
    longest = found.longest
    assert longest is not None and 300 < longest[1] <= math.log(2) / 1e-3  # whatever the block: time scales fit it
    assert found.window == 1 + 2 + 1  # windows of 3 and 2
    assert fresh_horizon(config_of("block_ssm")) == fresh_horizon(config_of("block_ssm"))
    attention = horizon(make("causal_full"))
    assert (attention.longest, attention.window, attention.forgets) == (None, 1, False)
    assert fresh_horizon(config_of("block_ssm_chunks")).window == 9 and longest_window(config_of("mamba_local")) == 3


def test_a_footprint_is_what_autograd_keeps() -> None:
    config, frames = config_of("block_ssm"), 24
    model = WorldModel(config)
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = show(model, frames)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    real = sum(size for place, size in held.items() if place not in own)
    assert kept.requires_grad
    assert 0.7 * footprint(config).kept(frames) < real < 1.05 * footprint(config).kept(frames)
    assert footprint(config, recompute=True).kept(frames) < 0.3 * real
