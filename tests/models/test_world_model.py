"""One call trains, prefills and rolls out: cuts change nothing, the past never sees the future, a memory is a value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtake.models.conditions import Conditions
from longtake.models.config import ModelConfig
from longtake.models.memory import Memory
from longtake.models.mixers.attention import _rotate, _rotation
from longtake.models.world_model import WorldModel
from tests.models.families import CAUSAL, inputs, make

FRAMES = 11


def in_pieces(model: WorldModel, cuts: list[int]) -> tuple[torch.Tensor, Memory | None]:
    x, level, conditions = inputs(FRAMES)
    memory, outputs = None, []
    for start, stop in zip([0, *cuts], [*cuts, FRAMES], strict=True):
        y, memory = model(x[:, start:stop], level[:, start:stop], conditions.frames(start, stop), memory)
        outputs.append(y)
    return torch.cat(outputs, 1), memory


@pytest.mark.parametrize("family", CAUSAL)
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, FRAMES - 1)).map(sorted))
def test_pieces_with_carried_memory_equal_one_call(family: str, cuts: list[int]) -> None:
    model = make(family)
    cuts = sorted({cut // (model.config.chunk or 1) * (model.config.chunk or 1) for cut in cuts} - {0})
    with torch.no_grad():
        whole, memory = in_pieces(model, [])
        cut, cut_memory = in_pieces(model, cuts)
    assert (cut - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert cut_memory is not None and memory is not None
    assert cut_memory.frames == memory.frames == FRAMES
    assert cut_memory.nbytes == memory.nbytes


@pytest.mark.parametrize("family", CAUSAL)
def test_places_are_told_apart_from_the_start(family: str) -> None:
    """Frames of one colour: all that differs between their tokens is where they are."""
    config = make(family).config
    torch.manual_seed(1)
    fresh = WorldModel(config)
    tokens = fresh.patches_in(torch.zeros(1, config.channels * config.patch**2)) + fresh.place
    spread = tokens.std(0).mean()
    patch = fresh.patches_in(torch.randn(64, config.channels * config.patch**2)).std(0).mean()
    assert spread > patch, "at 0.02 beside 0.58 attention could not tell patches apart, and never recalled"


def test_axial_rotary_tells_rows_and_columns_by_their_distance() -> None:
    """A score depends on how far apart two tokens are along each axis, and on nothing else."""
    q, k = torch.randn(2, 1, 1, 1, 1, 16).expand(2, 1, 5, 12, 1, 16)
    turned_q, turned_k = (_rotate(part, *_rotation(part, 3, 4)) for part in (q, k))
    scores = torch.einsum("btnhd,bsmhd->btnsm", turned_q, turned_k)[0]  # t n s m, tokens in rows of 4
    assert torch.allclose(scores[1, 0, 0, 5], scores[3, 6, 2, 11], atol=1e-5), "one row, one column, one frame on"
    assert not torch.allclose(scores[1, 0, 1, 1], scores[1, 0, 1, 4], atol=1e-3), "a row is not a column"
    assert not torch.allclose(scores[1, 0, 1, 1], scores[1, 0, 1, 2], atol=1e-3)
    in_time = _rotate(q, *_rotation(q, 3))
    assert torch.allclose(in_time[:, :, :1], in_time[:, :, 5:6]), "time alone does not tell tokens apart"


@pytest.mark.parametrize("family", CAUSAL)
def test_gradients_of_uncut_back_propagation_are_equal_in_pieces(family: str) -> None:
    model = make(family)
    gradients = []
    for cuts in ([], [3, 6, 9] if model.config.chunk else [1, 4, 9]):
        model.zero_grad()
        in_pieces(model, cuts)[0].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1e-9), name


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("frame", [1, 6, 10])
def test_a_frame_changes_nothing_before_it(family: str, frame: int) -> None:
    model = make(family)
    x, level, conditions = inputs(FRAMES)
    other = x.clone()
    other[:, frame] += 1.0
    first = frame // (model.config.chunk or 1) * (model.config.chunk or 1)
    with torch.no_grad():
        one, two = model(x, level, conditions)[0], model(other, level, conditions)[0]
    assert torch.equal(one[:, :first], two[:, :first])
    assert not torch.equal(one[:, frame], two[:, frame])


def reach(family: str) -> int:
    """How many frames after frame 0 still feel it."""
    model = make(family)
    x, level, conditions = inputs(FRAMES)
    other = x.clone()
    other[:, 0] += 1.0
    with torch.no_grad():
        moved = (model(x, level, conditions)[0] != model(other, level, conditions)[0]).flatten(2).any(-1).any(0)
    return int(moved.nonzero().max())


def test_only_scans_reach_beyond_the_windows() -> None:
    assert reach("causal_window") == 2  # windows of 3 and 1 frames
    assert reach("block_ssm") == FRAMES - 1
    assert reach("mamba") == FRAMES - 1
    assert reach("causal_full") == FRAMES - 1


def test_a_call_leaves_the_memory_it_is_given_as_it_was() -> None:
    model = make("block_ssm")
    x, level, conditions = inputs(FRAMES)
    with torch.no_grad():
        _, memory = model(x[:, :5], level[:, :5], conditions.frames(0, 5))
        before = [t.clone() for t in tensors(memory)]
        first = model(x[:, 5:6], level[:, 5:6], conditions.frames(5, 6), memory)[0]
        again = model(x[:, 5:6], level[:, 5:6], conditions.frames(5, 6), memory)[0]
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(memory), strict=True))


def test_detach_cuts_the_graph_and_keeps_the_values() -> None:
    model = make("block_ssm")
    x, level, conditions = inputs(FRAMES)
    _, memory = model(x, level, conditions)
    assert all(t.requires_grad for t in tensors(memory))
    assert not any(t.requires_grad for t in tensors(memory.detach()))


def test_memory_bytes_are_those_of_its_tensors_and_do_not_grow() -> None:
    model = make("block_ssm")
    x, level, conditions = inputs(FRAMES)
    with torch.no_grad():
        _, five = model(x[:, :5], level[:, :5], conditions.frames(0, 5))
        _, ten = model(x[:, 5:10], level[:, 5:10], conditions.frames(5, 10), five)
    assert five.nbytes["total"] == sum(t.nbytes for t in tensors(five))
    assert five.nbytes == ten.nbytes


def tensors(memory: Memory) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    memory.map(lambda t: found.append(t) or t)
    return found


def test_missing_conditions_and_wrong_frames_are_named() -> None:
    model = make("block_ssm")
    x, level, _ = inputs(FRAMES)
    with pytest.raises(ValueError, match=r"conditions\.pose: missing"):
        model(x, level, Conditions())
    with pytest.raises(ValueError, match="frames are"):
        model(x[..., :4], level, inputs(FRAMES)[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "patch: 3 does not divide height 8"),
        ({"heads": 3}, "heads: 3 does not divide dim 16"),
        ({"headdim": 5}, "headdim: 5 does not divide expand x dim = 32"),
        ({"layers": [{"spatial_block": [3, 1]}]}, "spatial_block: .3, 1. does not divide the 2 x 2 tokens"),
        ({"layers": [{"mixer": "none", "local": "none"}]}, "nothing would mix"),
    ],
)
def test_impossible_shapes_are_refused_with_what_fits(change: dict[str, object], message: str) -> None:
    settings = {
        "height": 8,
        "width": 8,
        "patch": 4,
        "dim": 16,
        "heads": 2,
        "headdim": 8,
        "layers": [{}],
        **change,
    }
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(settings)
