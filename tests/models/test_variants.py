"""What a config can change: not causal, in chunks, conditions of every kind, memory saved, cost traded."""

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save

from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.memory import Memory
from longtake.models.rollout import LongContextWarning, fill_in, prefill, rollout
from tests.models.families import CAUSAL, SIZES, build, inputs, make


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("mixer", ["ssm", "attention"])
@pytest.mark.parametrize("local", ["attention", "convolution"])
def test_a_model_that_is_not_causal_sees_both_ways_and_refuses_a_memory(mixer: str, local: str) -> None:
    layers = [LayerConfig(mixer=mixer, local=local)]
    model = build(ModelConfig(**SIZES, layers=layers, causal=False, window_future=2))
    x, level, conditions = inputs(7)
    other = x.clone()
    other[:, 3] += 1.0
    with torch.no_grad():
        one, memory = model(x, level, conditions)
        two, _ = model(other, level, conditions)
    assert memory is None
    assert (one != two).flatten(2).any(-1).all()
    with pytest.raises(ValueError, match="not causal"):
        model(x, level, conditions, Memory(()))
    with pytest.raises(ValueError, match="use fill_in"):
        prefill(model, x, conditions)
    known = torch.tensor([[True, False, False, True, False, True, True]] * 2)
    filled = fill_in(model, x, known, conditions, SamplerConfig(), generators(1, 2))
    assert torch.equal(filled[known], x[known])
    assert not torch.equal(filled[~known], x[~known])


def test_chunks_are_made_whole_and_handed_over_whole() -> None:
    model = make("block_ssm_chunks")  # chunks of 3
    x, level, conditions = inputs(10)
    _, memory = model(x[:, :4], level[:, :4], conditions.frames(0, 4))
    with pytest.raises(ValueError, match="inside a chunk of 3 frames"):
        model(x[:, 4:], level[:, 4:], conditions.frames(4, 10), memory)
    seen = prefill(model, x[:, :6], conditions.frames(0, 6), temporal_block=4)
    done: list[int] = []
    frames, after = rollout(
        model, conditions.frames(6, 10), 4, seen, SamplerConfig(steps=2), generators(1, 2), done.append
    )
    assert frames.shape[1] == 4 and after.frames == 10 and done == [3, 4]


@pytest.mark.parametrize("family", CAUSAL)
def test_a_saved_memory_continues_the_same_rollout(family: str) -> None:
    model = make(family).eval()
    x, _, conditions = inputs(12)
    sampler, seeds = SamplerConfig(steps=2), generators(1, 2)
    memory = prefill(model, x[:, :6], conditions.frames(0, 6))
    first, memory = rollout(model, conditions.frames(6, 9), 3, memory, sampler, seeds)
    saved = save(memory.to_dict())
    states = [generator.get_state() for generator in seeds]
    on, last = rollout(model, conditions.frames(9, 12), 3, memory, sampler, seeds)
    for generator, state in zip(seeds, states, strict=True):
        generator.set_state(state)
    again, last_again = rollout(model, conditions.frames(9, 12), 3, Memory.from_dict(load(saved)), sampler, seeds)
    assert torch.equal(on, again)
    assert last.nbytes == last_again.nbytes and last_again.frames == 12


def test_discrete_actions_have_a_null_and_are_checked() -> None:
    model = make(conditions="actions", actions="discrete", action_dim=3)
    x, level, _ = inputs(4)
    actions = torch.eye(4)[torch.tensor([[0, 1, 2, 3]] * 2)][..., 1:]  # none, then each of the three
    one = model(x, level, Conditions(actions=actions))[0]
    other = actions.clone()
    other[:, 2] = actions[:, 3]
    two = model(x, level, Conditions(actions=other))[0]
    assert torch.equal(one[:, :2], two[:, :2]) and not torch.equal(one[:, 2], two[:, 2])
    for wrong in (actions * 2, actions[..., :2], torch.ones(2, 4, 3)):
        with pytest.raises(ValueError, match="3 discrete actions: one-hot"):
            model(x, level, Conditions(actions=wrong))


def test_dropped_conditions_tell_nothing_and_guidance_uses_them() -> None:
    model = make()
    x, level, conditions = inputs(5)
    dropped = torch.zeros(2, 5, dtype=torch.bool)
    dropped[0] = True
    moved = dataclasses.replace(conditions, pose=conditions.pose + 1)
    with torch.no_grad():
        one, two = (model(x, level, told.drop(dropped))[0] for told in (conditions, moved))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])
    memory = prefill(model, x, conditions)
    step = inputs(1, seed=3)[2]
    plain, guided = (
        rollout(model, step, 1, memory, SamplerConfig(steps=2, guidance=scale), generators(1, 2))[0]
        for scale in (1.0, 3.0)
    )
    assert not torch.equal(plain, guided)


def test_recomputing_gives_equal_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = make()
        model.recompute = recompute
        x, level, conditions = inputs(9)
        _, memory = model(x[:, :4], level[:, :4], conditions.frames(0, 4))
        y, _ = model(x[:, 4:], level[:, 4:], conditions.frames(4, 9), memory)
        y.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert one is not None and two is not None and torch.equal(one, two)


def test_a_long_stream_warns() -> None:
    model = make()
    model.trained_frames = 6
    x, _, conditions = inputs(7)
    with pytest.warns(LongContextWarning, match="7 frames, but the model was trained on clips of 6"):
        prefill(model, x, conditions)


def test_frames_that_are_not_finite_are_named() -> None:
    x, _, conditions = inputs(5)
    x[1, 3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="first in clip 1, frame 3"):
        prefill(make(), x, conditions)


@pytest.mark.parametrize("share", [False, True])
def test_layers_are_stretched_or_thinned_over_the_depth(share: bool) -> None:
    layers = [LayerConfig(spatial_block=[1, 1]), LayerConfig(spatial_block="frame")]
    only_the_first = ModelConfig(**SIZES, layers=[*layers, LayerConfig(spatial_block=[3, 3])], depth=2)
    assert only_the_first.stack == layers  # and a block that does not fit matters only where it is used
    config = ModelConfig(**SIZES, layers=layers, depth=5, share_local=share)
    assert [config.layer_block(layer) for layer in config.stack] == [(1, 1)] * 3 + [(2, 2)] * 2
    names = build(config).state_dict()
    assert sum("qkv" in name for name in names) == (1 if share else 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_future": 2}, "window_future: 2 frames of the future need causal: false"),
        ({"chunk": 5, "causal": False}, "chunk: 5 is a form of causal attention"),
        ({"share_local": True, "layers": [{"window": 2}, {}]}, "share_local: one local mixer cannot serve"),
        ({"chunk": 5, "layers": [{"local": "convolution"}]}, r"layers.0.local: convolution slides"),
        ({"window": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({**SIZES, "layers": [{}], **change})


def test_state_widths_are_per_block_and_carried() -> None:
    model = make("block_ssm")
    x, level, conditions = inputs(8)
    with torch.no_grad():
        uniform = model(x, level, conditions, model.empty_memory(2, 4))[0]
        widths = [torch.full((8,), 4), torch.full((4,), 4)]  # 2 streams of 4 and of 2 blocks
        assert (model(x, level, conditions, model.empty_memory(2, widths))[0] - uniform).abs().max() < 1e-6
        widths[0][3:6] = 8
        whole, memory = model(x, level, conditions, model.empty_memory(2, widths))
        memory_cut, pieces = model.empty_memory(2, widths), []
        for start, stop in ((0, 3), (3, 8)):
            y, memory_cut = model(x[:, start:stop], level[:, start:stop], conditions.frames(start, stop), memory_cut)
            pieces.append(y)
    assert memory is not None and memory_cut is not None
    assert not torch.equal(whole, uniform)
    assert (torch.cat(pieces, 1) - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert [part.width for part in memory_cut.layers[0].ssm] == [4, 8]
    full = model(x, level, conditions)[1]
    assert full is not None and memory.nbytes["state"] < full.nbytes["state"]
    with pytest.raises(ValueError, match=r"widths: 8 of \[9\] dimensions"):
        model.empty_memory(2, 9)


def test_all_state_dimensions_are_the_model_without_nesting() -> None:
    model = make("block_ssm")
    x, level, conditions = inputs(8)
    with torch.no_grad():
        assert torch.equal(model(x, level, conditions)[0], model(x, level, conditions, model.empty_memory(2))[0])
        memory = model(x, level, conditions)[1]
    assert memory is not None
    half = memory.with_width(4)
    assert half.nbytes["state"] * 2 == memory.nbytes["state"]
    again = half.with_width(8)
    for one, two in zip(memory.layers, again.layers, strict=True):
        assert torch.equal(one.ssm[0].state[..., :4], two.ssm[0].state[..., :4])
        assert not two.ssm[0].state[..., 4:].any()


@pytest.mark.parametrize("family", CAUSAL)
def test_low_precision_stays_close_and_the_state_stays_fp32(family: str) -> None:
    model = make(family)
    x, level, conditions = inputs(6)
    with torch.no_grad():
        exact, _ = model(x, level, conditions)
        with torch.autocast("cpu", torch.bfloat16):
            _, memory = model(x[:, :3], level[:, :3], conditions.frames(0, 3))
            rough, memory = model(x[:, 3:], level[:, 3:], conditions.frames(3, 6), memory)
    assert memory is not None
    assert (rough - exact[:, 3:]).abs().max() < 0.1 * exact.abs().max()
    assert all(state.dtype == torch.float32 for _, state in memory.states)
