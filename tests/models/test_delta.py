"""The gated delta rule against its recurrence in float64, values and every gradient; what the fla backend is called
with; what the mixer's options change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from longtake.models.analysis.cost import Costs
from longtake.models.analysis.parameter_matching import TOLERANCE, count_parameters, match_parameters
from longtake.models.analysis.reach import fresh_horizon
from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.memory import Memory
from longtake.models.scan import chunks, fla
from longtake.models.scan.delta_chunked import chunked_delta_rule
from longtake.models.scan.delta_rule import Backend, delta_rule, delta_rule_reference
from longtake.models.scan.fla import GRID, fla_delta_rule, rows_per_call
from tests.models.families import SIZES, build, inputs

NAMES = ["y", "state", "dv", "dbeta", "dlog_decay", "dk", "dq", "dh0"]


def problem(length: int, groups: int, rate: float, dtype: torch.dtype, most: float = 1.0, b: int = 2) -> list[Tensor]:
    """Keys of length 1, as the mixer makes them; `rate` scales the decay, `most` is the largest beta."""
    draw, (h, p, n) = torch.Generator().manual_seed(length + groups), (4, 8, 16)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    k, q = (F.normalize(normal(b, length, groups, n), dim=-1) for _ in range(2))
    beta, log_decay = normal(b, length, h).sigmoid() * most, -F.softplus(normal(b, length, h)) * rate
    made = (normal(b, length, h, p), beta, log_decay, k, q, normal(b, h, p, n))
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def outputs_and_gradients(function: Callable[..., Any], given: list[Tensor], **options: Any) -> list[Tensor]:
    y, state = function(*given, **options)
    draw = torch.Generator().manual_seed(0)
    weighted = ((part.double() * torch.randn(part.shape, generator=draw).double()).sum() for part in (y, state))
    return [y, state, *torch.autograd.grad(sum(weighted), given)]  # type: ignore[arg-type]


def worst(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    pairs = ((one.detach().double(), other.detach().double()) for one, other in zip(found, expected, strict=True))
    return {n: float((a - b).abs().max() / b.abs().max()) for n, (a, b) in zip(NAMES, pairs, strict=True)}


@pytest.mark.parametrize("length", [1, 63, 500, 1000])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("rate", "most"), [(0.001, 1.0), (0.001, 2.0), (1.0, 1.0), (40.0, 1.0)])
def test_chunked_equals_the_recurrence(length: int, groups: int, rate: float, most: float) -> None:
    expected = outputs_and_gradients(delta_rule_reference, problem(length, groups, rate, torch.float64, most))
    for chunk in (16, 64, 100):
        found = outputs_and_gradients(delta_rule, problem(length, groups, rate, torch.float32, most), chunk=chunk)
        assert max(worst(found, expected).values()) <= 5e-6, (chunk, worst(found, expected))


def test_float64_is_computed_in_float64() -> None:
    given = problem(150, 2, 0.1, torch.float64)
    found = worst(outputs_and_gradients(delta_rule, given), outputs_and_gradients(delta_rule_reference, given))
    assert max(found.values()) <= 1e-13


@pytest.mark.parametrize("cuts", [(0, 1, 38, 100), tuple(range(101))], ids=["pieces", "token by token"])
def test_a_cut_with_the_state_carried_changes_nothing(cuts: tuple[int, ...]) -> None:
    given = problem(100, 2, 0.1, torch.float32)

    def cut(*parts: Tensor) -> tuple[Tensor, Tensor]:
        *parts, state = parts  # type: ignore[assignment]
        ys = []
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
            y, state = delta_rule(*(part[:, start:stop] for part in parts), state)  # type: ignore[call-arg]
            ys.append(y)
        return torch.cat(ys, 1), state  # type: ignore[return-value]

    found = worst(outputs_and_gradients(cut, given), outputs_and_gradients(delta_rule, given))
    assert max(found.values()) <= 5e-6


def test_a_key_that_is_written_twice_holds_the_last_value() -> None:
    v, k = torch.randn(1, 2, 1, 8), F.normalize(torch.randn(1, 1, 1, 16), dim=-1).expand(1, 2, 1, 16)
    full, still = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    y, state = delta_rule(v, full, still, k, k)
    assert torch.allclose(y, v, atol=1e-6)
    assert torch.allclose(state[0, 0] @ k[0, 0, 0], v[0, 1, 0], atol=1e-6)
    _, kept = delta_rule(v, 0 * full, still, k, k, state)
    assert torch.equal(kept, state), "beta 0 leaves it as it is"


@pytest.mark.parametrize("tile", [1, 3 * 4 * 16 * 16, 1 << 30])
def test_tiles_of_rows_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs_and_gradients(delta_rule_reference, problem(40, 2, 0.1, torch.float64, b=7))
    monkeypatch.setattr(chunks, "TILE", tile)
    found = outputs_and_gradients(delta_rule, problem(40, 2, 0.1, torch.float32, b=7), chunk=16)
    assert max(worst(found, expected).values()) <= 5e-6


def test_a_token_that_forgets_everything_is_no_trouble() -> None:
    given = problem(100, 1, 0.01, torch.float64)
    with torch.no_grad():
        given[2][:, 5::7] = -4000.0
    expected = outputs_and_gradients(delta_rule_reference, given)
    found = outputs_and_gradients(delta_rule, [tensor.detach().float().requires_grad_() for tensor in given])
    assert max(worst(found, expected).values()) <= 5e-6


def test_autocast_and_low_precision_leave_the_state_in_fp32() -> None:
    v, beta, log_decay, k, q, h0 = (tensor.detach() for tensor in problem(70, 1, 0.1, torch.float32))
    exact = delta_rule(v, beta, log_decay, k, q, h0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = delta_rule(v, beta, log_decay, k, q, h0)
    assert all(torch.equal(one, other) for one, other in zip(exact, inside, strict=True))
    low = delta_rule(v.bfloat16(), beta, log_decay, k.bfloat16(), q.bfloat16(), h0)
    assert (low[0].dtype, low[1].dtype) == (torch.bfloat16, torch.float32)


def test_the_state_handed_in_is_left_alone_and_nothing_is_kept_without_gradients() -> None:
    given = problem(200, 1, 0.1, torch.float32)
    before = given[5].detach().clone()
    y, _ = delta_rule(*given)
    assert y.grad_fn is not None
    with torch.no_grad():
        again, state = delta_rule(*given)
    assert torch.equal(y, again) and again.grad_fn is None and torch.equal(given[5], before)
    assert state.data_ptr() != given[5].data_ptr()


# --- what is refused --------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit_are_all_named() -> None:
    v, beta, log_decay, k, q, h0 = problem(10, 2, 0.1, torch.float32)
    with pytest.raises(ValueError, match=r"beta has shape \(2, 9, 4\), expected \(2, 10, 4\); h0 has shape \(1,"):
        delta_rule(v, beta[:, :9], log_decay, k, q, h0[:1])
    with pytest.raises(ValueError, match="4 heads cannot share 3 groups"):
        delta_rule(v, beta, log_decay, *(t[:, :, :1].expand(-1, -1, 3, -1) for t in (k, q)), h0)
    with pytest.raises(ValueError, match="no tokens"):
        delta_rule(v[:, :0], beta[:, :0], log_decay[:, :0], k[:, :0], q[:, :0], h0)
    with pytest.raises(ValueError, match="chunk 0.*unknown backend 'mamba'; there are: auto, torch, fla"):
        delta_rule(v, beta, log_decay, k, q, h0, chunk=0, backend="mamba")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_cpu_takes_torch(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.models.scan.delta_rule.fla_delta_rule", lambda *given: pytest.fail("fla on a CPU"))
    delta_rule(*problem(5, 1, 0.1, torch.float32), backend=backend)


def test_fla_off_cuda_and_sizes_it_does_not_take_are_refused() -> None:
    v, beta, log_decay, k, q, h0 = problem(5, 1, 0.1, torch.float32)
    with pytest.raises(ValueError, match="v is on cpu: choose backend 'torch'"):
        delta_rule(v, beta, log_decay, k, q, h0, backend="fla")
    with pytest.raises(ValueError, match="takes 16, 32, 64"):
        delta_rule(v, beta, log_decay, k, q, h0, backend="fla", chunk=48)
    wide = torch.zeros(2, 5, 1, 512)
    with pytest.raises(ValueError, match="512 wide: backend 'fla' takes 256 at most"):
        delta_rule(v, beta, log_decay, wide, wide, torch.zeros(2, 4, 8, 512), backend="fla")


@pytest.mark.parametrize(("missing", "package"), [("fla", "fla-core"), ("triton", "triton")])
def test_fla_without_its_packages_says_how_to_get_them(
    missing: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fla, "_spec", lambda name: None if name == missing else object())
    fla.load_kernels.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=f"needs {package}: install with `pip install fla-core.*'torch'"):
        fla.load_kernels()


@pytest.mark.parametrize("heads", [1, 24, GRID])
def test_no_launch_has_more_heads_than_its_grid(heads: int) -> None:
    rows = rows_per_call(heads)
    assert rows * heads <= GRID < (rows + 1) * heads
    with pytest.raises(ValueError, match="more than the 65535"):
        rows_per_call(GRID + 1)


def test_the_kernels_are_called_by_their_own_names_and_in_rows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the kernels: our own rule, called as theirs is."""
    made = []

    def kernels(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        assert options.pop("scale") == 1.0 and options.pop("output_final_state") and options.pop("state_v_first")
        assert all(tensor.is_contiguous() for tensor in (q, k, v, g, beta))
        made.append(len(v))
        return chunked_delta_rule(v, beta, g, k, q, options["initial_state"], options["chunk_size"])

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fla, "load_kernels", lambda: kernels)
    monkeypatch.setattr(fla, "rows_per_call", lambda heads: 2)
    given = problem(50, 2, 0.1, torch.float32, b=5)
    found = worst(outputs_and_gradients(fla_delta_rule, given), outputs_and_gradients(delta_rule, given))
    assert made == [2, 2, 1] and max(found.values()) <= 2e-6


# --- the mixer and its options ----------------------------------------------------------------------------


OPTIONS: list[dict[str, Any]] = [
    {"key_groups": 1},
    {"convolution": "values"},
    {"convolution": "none"},
    {"pose_keys": True},
    {"half_lives": [4.0, 64.0], "convolution": "none", "pose_keys": True},
]


def config_of(options: dict[str, Any], mixer: str = "delta", **changes: Any) -> ModelConfig:
    blocks = [[1, 1], [2, 1]]
    layers = [LayerConfig(mixer=mixer, local="none", spatial_block=block, options=options) for block in blocks]
    return ModelConfig(**{**SIZES, "layers": layers, **changes})


CASES = [("delta", options) for options in OPTIONS] + [("ssm", options) for options in OPTIONS[1:]]


@pytest.mark.parametrize(("mixer", "options"), CASES, ids=str)
@pytest.mark.parametrize("width", [None, 4])
def test_every_option_is_exact_in_pieces_causal_and_can_be_cut(
    mixer: str, options: dict[str, Any], width: int | None
) -> None:
    model = build(config_of(options, mixer))
    x, level, conditions = inputs(9)
    memory = start = model.empty_memory(2, width)
    with torch.no_grad():
        whole, _ = model(x, level, conditions, start)
        pieces = []
        for frame in range(9):
            y, memory = model(
                x[:, frame : frame + 1], level[:, frame : frame + 1], conditions.frames(frame, frame + 1), memory
            )
            pieces.append(y)
            memory = Memory.from_dict(memory.to_dict())
        moved = type(conditions)(pose=conditions.pose.clone())
        moved.pose[:, 5] += 1.0
        other = model(x, level, moved, start)[0]
    assert (torch.cat(pieces, 1) - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert torch.equal(other[:, :5], whole[:, :5]) and not torch.equal(other[:, 5], whole[:, 5])
    assert {part.width for layer in memory.layers for part in layer.ssm} == {width or 8}


def test_the_state_is_as_large_as_mambas_and_parameters_are_matched() -> None:
    theirs = ModelConfig(**SIZES, layers=[LayerConfig(spatial_block=[1, 1]), LayerConfig(spatial_block=[2, 1])])
    ours = config_of({"key_groups": 1}, layers=[
        LayerConfig(mixer="delta", spatial_block=block, options={"key_groups": 1}) for block in ([1, 1], [2, 1])
    ])  # fmt: skip
    own, other = Costs(ours).carried(7), Costs(theirs).carried(7)
    assert own == other, "state, inputs of the convolution, window: byte for byte"
    assert Costs(config_of({})).carried(7)["state"] == other["state"]
    matched = match_parameters(config_of({}), theirs)
    assert count_parameters(matched) == pytest.approx(count_parameters(theirs), rel=TOLERANCE)


@pytest.mark.parametrize("mixer", ["ssm", "delta"])
def test_half_lives_at_the_start_are_those_asked(mixer: str) -> None:
    layers = [LayerConfig(mixer=mixer, spatial_block=[2, 2], options={"half_lives": [10.0, 1000.0]})]
    config = ModelConfig(**{**SIZES, "headdim": 1, "layers": layers})
    (lives,) = [layer.scan.half_lives() for layer in build(config).layers]
    assert 10 <= lives.min() < 30 and 400 < lives.max() <= 1000
    median, longest = fresh_horizon(config).half_lives[0]
    assert 50 < median < 200 and 400 < longest <= 1000


@pytest.mark.parametrize(
    ("layer", "model", "message"),
    [
        ({"options": {"key_groups": 3}}, {}, "key_groups: 3 does not divide the 4 heads"),
        ({}, {"scan": "mamba"}, "mixer: delta, but scan: mamba"),
        ({"mixer": "ssm"}, {"scan": "fla"}, "mixer: ssm, but scan: fla"),
        ({"spatial_block": [3, 1]}, {}, "does not divide the 2 x 2 tokens"),
        ({"options": {"half_lives": [9.0, 3.0]}}, {}, "the shortest comes first"),
        ({"options": {"pose": True}}, {}, "options.pose: .*half_lives, convolution, pose_keys, key_groups"),
    ],
)
def test_what_does_not_fit_is_refused(layer: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({**SIZES, **model, "layers": [{"mixer": "delta", **layer}]})
