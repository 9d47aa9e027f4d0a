"""The contract of every registered mixer: causal, exact under any cut, honest about what it carries and costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longtake.models.analysis.cost import Costs, _count, _layer_pass
from longtake.models.analysis.reach import fresh_horizon
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.memory import LayerMemory, Memory
from longtake.models.mixers import local_mixers, mixers
from longtake.models.mixers.base import Mixer
from longtake.models.rollout import prefill, rollout
from longtake.models.state.monitor import state_statistics
from longtake.models.world_model import Layer, WorldModel
from tests.models.families import SIZES, build, inputs

FRAMES = 9
EVERY = [*(("mixer", name) for name in mixers()), *(("local", name) for name in local_mixers())]


def config_of(kind: str, name: str) -> ModelConfig:
    """A model whose layers have this one mixer; two different blocks where it scans them."""
    other = {"local": "none"} if kind == "mixer" else {"mixer": "none"}
    blocks = [[1, 1], [2, 1]]
    return ModelConfig(**SIZES, layers=[LayerConfig(**{kind: name, **other}, spatial_block=block) for block in blocks])


@pytest.fixture(params=EVERY, ids=lambda at: f"{at[0]}-{at[1]}")
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return config_of(*request.param)


@pytest.fixture
def model(config: ModelConfig) -> WorldModel:
    return build(config)


def tensors(memory: Memory | None) -> list[Tensor]:
    assert memory is not None
    found: list[Tensor] = []
    memory.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def peak(tensor: Tensor) -> float:
    """The largest magnitude in a tensor; 0 if there is nothing in it."""
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def in_pieces(model: WorldModel, cuts: list[int], memory: Memory | None = None) -> tuple[Tensor, Memory]:
    x, level, conditions = inputs(FRAMES)
    outputs = []
    for start, stop in zip([0, *cuts], [*cuts, FRAMES], strict=True):
        y, memory = model(x[:, start:stop], level[:, start:stop], conditions.frames(start, stop), memory)
        outputs.append(y)
    assert memory is not None
    return torch.cat(outputs, 1), memory


def test_a_memory_holds_no_more_bytes_than_it_says(model: WorldModel) -> None:
    """A view of what a whole clip went through would hold the clip."""
    x, level, conditions = inputs(FRAMES)
    with torch.no_grad():
        _, memory = model(x, level, conditions)
        after = model(x, level, conditions, memory)[1]
    for carried in (memory, after, after.with_width(2) if after is not None else None):
        found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(carried)}
        assert carried is not None and sum(found.values()) == carried.nbytes["total"]


def test_the_mixers_are_these() -> None:
    assert set(mixers()) >= {"ssm", "attention"} and set(local_mixers()) == {"attention", "convolution"}
    assert all(issubclass(kind, Mixer) and kind.__module__ for kind in (*mixers().values(), *local_mixers().values()))


@pytest.mark.parametrize("cuts", [[4], [1, 2, 7], list(range(1, FRAMES))], ids=["two", "four", "frame by frame"])
def test_pieces_equal_the_whole_in_values_gradients_and_memory(model: WorldModel, cuts: list[int]) -> None:
    found = []
    for at in ([], cuts):
        model.zero_grad()
        y, memory = in_pieces(model, at)
        loss = y.square().sum() + sum(tensor.square().sum() for tensor in tensors(memory))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append(({"y": y, **{str(i): t for i, t in enumerate(tensors(memory))}}, gradients))
    for whole, pieces in zip(*found, strict=True):
        assert whole.keys() == pieces.keys()
        for name, tensor in whole.items():
            assert torch.allclose(tensor, pieces[name], rtol=0, atol=1e-5 * peak(tensor)), name


@pytest.mark.parametrize("frame", [1, 5, FRAMES - 1])
def test_a_frame_changes_no_bit_before_it(model: WorldModel, frame: int) -> None:
    x, level, conditions = inputs(FRAMES)
    other, told = x.clone(), conditions.pose.clone()
    other[:, frame] += 1.0
    told[:, frame] += 1.0
    with torch.no_grad():
        one = model(x, level, conditions)[0]
        two = model(other, level, type(conditions)(pose=told))[0]
    assert torch.equal(one[:, :frame], two[:, :frame]) and not torch.equal(one[:, frame], two[:, frame])


def test_with_causal_false_every_frame_hears_of_every_other_in_its_reach(config: ModelConfig) -> None:
    model = build(ModelConfig.model_validate(config.model_dump() | {"causal": False, "window_future": 2}))
    x, level, conditions = inputs(5)
    other = x.clone()
    other[:, 2] += 1.0
    with torch.no_grad():
        one, memory = model(x, level, conditions)
        assert memory is None and (one != model(other, level, conditions)[0]).flatten(2).any(-1).all()


def test_the_bytes_told_are_those_carried(config: ModelConfig, model: WorldModel) -> None:
    _, memory = in_pieces(model, [])
    assert memory.nbytes["total"] == sum(tensor.nbytes for tensor in tensors(memory)) > 0
    costs = Costs(config)
    assert {part: size // 2 for part, size in memory.nbytes.items()} == costs.carried(FRAMES)  # two clips
    for number, layer in enumerate(config.stack):
        flat = costs.carried(10)["total"] == costs.carried(1000)["total"]
        assert flat == (not layer.keeps_every_frame)
        assert (number in costs.states) == (layer.scan_class is not None)


def test_nothing_remembered_is_a_streams_start(model: WorldModel) -> None:
    empty = model.empty_memory(2)
    with torch.no_grad():
        one, two = in_pieces(model, [])[0], in_pieces(model, [], empty)[0]
    assert torch.equal(one, two) and empty.frames == 0
    assert not any(tensor.any() for tensor in tensors(empty))


def test_a_memory_is_a_value_that_can_be_cut_from_the_graph_saved_and_returned_to(model: WorldModel) -> None:
    x, _, conditions = inputs(FRAMES)
    _, memory = in_pieces(model, [])
    before = [tensor.clone() for tensor in tensors(memory)]
    assert any(tensor.requires_grad for tensor in tensors(memory))
    assert not any(tensor.requires_grad for tensor in tensors(memory.detach()))
    seen = prefill(model, x, conditions)
    saved = Memory.from_dict(seen.to_dict())
    made = []
    for start in (seen, seen, saved):  # again from the same memory, and from the saved one
        draw = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        made.append(rollout(model, conditions.frames(0, 3), 3, start, SamplerConfig(steps=1), draw)[0])
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert all(torch.equal(one, two) for one, two in zip(before, tensors(memory), strict=True))


def test_its_costs_are_counted_and_linear_in_its_period(config: ModelConfig) -> None:
    costs = Costs(config)
    assert costs.training_flops(64) > 0 and costs.frame_flops(5, SamplerConfig()) > 0
    for layer in config.stack:
        kind = layer.mixer_class or layer.local_class
        assert kind is not None
        period = kind.period(config, layer)
        with torch.device("meta"):
            one, two, four = (_count(_layer_pass(config, layer, period * i)) for i in (1, 2, 4))
        if not layer.keeps_every_frame:
            assert four - 2 * two == pytest.approx(2 * (two - 2 * one), abs=1e-6 * four)


def scanning(config: ModelConfig) -> Iterator[tuple[LayerConfig, Layer]]:
    model = WorldModel(config)
    for layer, built in zip(config.stack, model.layers, strict=True):
        assert isinstance(built, Layer)
        if built.scan is not None:
            yield layer, built


def test_half_lives_are_positive_and_come_from_the_time_scales_alone(config: ModelConfig) -> None:
    found = list(scanning(config))
    fresh = fresh_horizon(config)  # of a model without weights whose time scales are drawn
    assert len(found) == len(fresh.half_lives) and fresh.forgets == (not any(x.keeps_every_frame for x in config.stack))
    for _, built in found:
        assert built.scan is not None
        lives = built.scan.half_lives()
        assert lives.numel() and (lives > 0).all() and not lives.requires_grad
    assert all(0 < median <= longest for median, longest in fresh.half_lives.values())


def test_the_state_fades_as_its_half_lives_say(config: ModelConfig) -> None:
    """What is left of a state without input is no more than its longest half-life promises, and not much less."""
    for layer, built in scanning(config):
        scan = built.scan
        assert scan is not None
        longest, frames = float(scan.half_lives().max()), 40
        silent = torch.zeros(1, frames, math.prod(config.grid), config.dim)
        empty = scan.empty_state(scan.blocks, scan.d_state, like=silent)
        full = replace(empty, state=torch.eye(*empty.state.shape[2:]).expand_as(empty.state))
        with torch.no_grad():
            told = torch.zeros(1, frames, config.dim)
            after = [scan(silent, (state,), 0, told)[1][0].state for state in (full, empty)]
        left = float(torch.linalg.matrix_norm(after[0] - after[1], ord=2).max())
        promised = 0.5 ** (frames / longest)
        assert 0.9 * promised <= left <= 1.001 * promised, layer


def test_statistics_of_its_state_are_finite_and_its_rank_is_possible(config: ModelConfig, model: WorldModel) -> None:
    _, memory = in_pieces(model, [])
    for number, layer in enumerate(config.stack):
        if layer.scan_class is None:
            continue
        told = state_statistics(memory)[f"layers.{number}.ssm"]
        most = layer.scan_class.full_rank(config)
        assert all(math.isfinite(value) for value in (told.mean, told.std, told.max, told.rank))
        assert most is None or 0 < told.rank <= most


def test_a_state_that_nests_works_in_its_first_dimensions_and_others_stay_whole(config: ModelConfig) -> None:
    model = build(config)
    for number, layer in enumerate(config.stack):
        if layer.scan_class is None:
            continue
        half = model.empty_memory(2, config.d_state // 2)
        _, after = in_pieces(model, [4], half)
        widths = {part.width for part in after.layers[number].ssm}
        whole = model.empty_memory(2).layers[number].ssm[0].width
        assert widths == {config.d_state // 2 if layer.scan_class.nests else whole}
        grown = after.with_width(whole)
        assert in_pieces(model, [], grown)[1].layers[number].ssm[0].width == whole


def test_words_are_few_and_options_unknown_are_refused(config: ModelConfig) -> None:
    for layer in config.stack:
        kind = layer.mixer_class or layer.local_class
        assert kind is not None and 1 <= len(kind.words(config, layer).split()) <= 4
        if layer.mixer_class is not None:
            with pytest.raises(ValidationError, match="options.halflife"):
                LayerConfig(mixer=layer.mixer, options={"halflife": 3})


def test_an_unknown_mixer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'attention' or .*'ssm' or 'none'"):
        LayerConfig(mixer="sms")
    with pytest.raises(ValidationError, match="'attention' or 'convolution' or 'none'"):
        LayerConfig(local="ssm")
    with pytest.raises(ValidationError, match="mixer none has none"):
        LayerConfig(mixer="none", options={"x": 1})


def test_what_is_carried_by_autocast_is_no_wider_than_what_is_computed(config: ModelConfig, model: WorldModel) -> None:
    """Inputs of the convolution were kept in fp32, and made all that followed them fp32 too."""
    x, level, conditions = inputs(FRAMES)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, memory = model(x, level, conditions, model(x, level, conditions)[1])
    assert memory is not None
    for layer in memory.layers:
        for part in layer.ssm:
            assert part.state.dtype == torch.float32
            assert not part.conv.numel() or part.conv.dtype == torch.bfloat16  # a mixer may have no convolution


@pytest.mark.slow
def test_a_layer_is_one_graph() -> None:
    """So that torch.compile can fuse what lies between its products."""
    model = build(ModelConfig(**SIZES, layers=[LayerConfig(mixer="none")]))
    layer, tokens = model.layers[0], torch.randn(2, FRAMES, 4, SIZES["dim"])
    told = torch.randn(2, FRAMES, SIZES["dim"])
    arguments = (tokens, told, told, LayerMemory(), 0, None)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*arguments)[0], layer(*arguments)[0])
