"""The scan against the recurrence in float64: values and every gradient; and what the mamba backend is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.models.scan import chunked, mamba
from longtake.models.scan import chunks as scan_chunks
from longtake.models.scan.mamba import GRID, INDEX, mamba_scan, split_sizes
from longtake.models.scan.scan import Backend, scan, scan_reference

NAMES = ["y", "state", "dx", "ddt", "dA", "dB", "dC", "dh0"]


def problem(
    length: int, groups: int, decay: float, dtype: torch.dtype, b: int = 2, h: int = 4, p: int = 8, n: int = 16
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length + groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, B, C, h0 = (
        normal(b, length, h, p),
        normal(b, length, groups, n),
        normal(b, length, groups, n),
        normal(b, h, p, n),
    )
    dt = torch.nn.functional.softplus(normal(b, length, h)) * decay
    A = -torch.rand(h, generator=draw, dtype=torch.float64) * 4 - 0.5
    return [t.to(dtype).requires_grad_() for t in (x, dt, A, B, C, h0)]


def outputs_and_gradients(function: Callable[..., Any], inputs: list[Tensor], **options: Any) -> list[Tensor]:
    y, state = function(*inputs, **options)
    weights = torch.Generator().manual_seed(0)
    loss = sum(
        (part.double() * torch.randn(part.shape, generator=weights, dtype=torch.float64)).sum() for part in (y, state)
    )
    return [y, state, *torch.autograd.grad(loss, inputs)]


def worst(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


# --- the chunked form -------------------------------------------------------------------------------------


def test_autocast_does_not_reach_into_the_scan() -> None:
    """Its state and its sums stay fp32, whether the backward is called inside of the context or outside."""
    exact = outputs_and_gradients(scan, problem(100, 1, 0.1, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        inside = outputs_and_gradients(scan, problem(100, 1, 0.1, torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(inside, exact, strict=True))


@pytest.mark.parametrize("length", [1, 63, 500, 1000])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("decay", [0.001, 0.01, 1.0, 4.0])  # half-lives of 300 tokens to a tenth of one
def test_chunked_scan_equals_the_recurrence(length: int, groups: int, decay: float) -> None:
    expected = outputs_and_gradients(scan_reference, problem(length, groups, decay, torch.float64))
    for chunk in (16, 64, 100, 256):
        found = outputs_and_gradients(scan, problem(length, groups, decay, torch.float32), chunk=chunk)
        for name, one, other in zip(NAMES, found, expected, strict=True):
            assert worst(one, other) <= 2e-6, (name, chunk)


def test_a_token_that_forgets_everything_is_no_trouble() -> None:
    """Decay from 1 to exp(-4000) beside each other: nothing overflows, and what is far apart stays far apart."""
    inputs = problem(100, 1, 0.01, torch.float64)
    with torch.no_grad():
        inputs[1][:, 5::7] = 1000.0
    expected = outputs_and_gradients(scan_reference, inputs)
    found = outputs_and_gradients(scan, [tensor.detach().float().requires_grad_() for tensor in inputs])
    for name, one, other in zip(NAMES, found, expected, strict=True):
        assert worst(one, other) <= 2e-6, name


@pytest.mark.parametrize("tile", [1, 3 * 4 * 16 * 16, 1 << 30])  # a row, three rows, the whole batch
def test_tiles_of_rows_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs_and_gradients(scan_reference, problem(40, 2, 0.1, torch.float64, b=7))
    monkeypatch.setattr(scan_chunks, "TILE", tile)
    found = outputs_and_gradients(scan, problem(40, 2, 0.1, torch.float32, b=7), chunk=16)
    for name, one, other in zip(NAMES, found, expected, strict=True):
        assert worst(one, other) <= 2e-6, name


def test_a_cut_with_the_state_carried_changes_nothing() -> None:
    inputs = problem(100, 1, 0.1, torch.float32)

    def cut(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        state, ys = h0, []
        for start, stop in ((0, 1), (1, 38), (38, 100)):
            y, state = scan(x[:, start:stop], dt[:, start:stop], A, B[:, start:stop], C[:, start:stop], state)
            ys.append(y)
        return torch.cat(ys, 1), state

    for one, other in zip(outputs_and_gradients(cut, inputs), outputs_and_gradients(scan, inputs), strict=True):
        assert worst(one, other) <= 2e-6


def test_float64_is_computed_in_float64() -> None:
    inputs = problem(70, 2, 0.1, torch.float64)
    for one, other in zip(
        outputs_and_gradients(scan, inputs), outputs_and_gradients(scan_reference, inputs), strict=True
    ):
        assert one.dtype == torch.float64
        assert worst(one, other) <= 1e-13


def test_bfloat16_goes_in_and_out_with_the_state_in_fp32() -> None:
    x, dt, A, B, C, h0 = problem(70, 1, 0.1, torch.float32)
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (x, B, C)]
    y, state = scan(low[0], dt, A, low[1], low[2], h0)
    same, same_state = scan(low[0].float(), dt, A, low[1].float(), low[2].float(), h0)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, same.bfloat16()) and torch.equal(state, same_state)
    y.float().sum().backward()
    assert low[0].grad is not None and low[0].grad.dtype == torch.bfloat16


def test_without_gradients_the_states_between_chunks_are_not_kept() -> None:
    inputs = problem(200, 1, 0.1, torch.float32)
    y, state = scan(*inputs)
    kept = [tensor.shape for tensor in y.grad_fn.saved_tensors]  # type: ignore[union-attr]
    assert torch.Size([4, 2, 1, 4, 8, 16]) in kept  # what the other line is compared with
    with torch.no_grad():
        again, after = scan(*inputs)
    assert torch.equal(y, again) and torch.equal(state, after) and again.grad_fn is None


def test_the_state_handed_in_is_left_alone() -> None:
    x, dt, A, B, C, h0 = (tensor.detach() for tensor in problem(40, 1, 0.1, torch.float32))
    before = h0.clone()
    _, state = scan(x, dt, A, B, C, h0)
    assert torch.equal(h0, before) and state.data_ptr() != h0.data_ptr()


# --- what is refused --------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit_are_all_named() -> None:
    x, dt, A, B, C, h0 = problem(10, 2, 0.1, torch.float32)
    with pytest.raises(ValueError, match=r"dt has shape \(2, 9, 4\), expected \(2, 10, 4\); A has shape \(1,\)"):
        scan(x, dt[:, :9], A[:1], B, C, h0)
    with pytest.raises(ValueError, match="4 heads cannot share 3 groups"):
        scan(x, dt, A, B[:, :, :1].expand(-1, -1, 3, -1), C[:, :, :1].expand(-1, -1, 3, -1), h0)
    with pytest.raises(ValueError, match="no tokens"):
        scan(x[:, :0], dt[:, :0], A, B[:, :0], C[:, :0], h0)
    with pytest.raises(ValueError, match="chunk 0.*unknown backend 'mambo'; there are: auto, torch, mamba"):
        scan(x, dt, A, B, C, h0, chunk=0, backend="mambo")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_cpu_takes_torch(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.models.scan.scan.mamba_scan", lambda *inputs: pytest.fail("mamba on a CPU"))
    scan(*problem(5, 1, 0.1, torch.float32), backend=backend)


def test_mamba_off_cuda_is_refused() -> None:
    with pytest.raises(ValueError, match="x is on cpu: choose backend 'torch'"):
        scan(*problem(5, 1, 0.1, torch.float32), backend="mamba")
    with pytest.raises(ValueError, match="powers of two from 16"):
        scan(*problem(5, 1, 0.1, torch.float32), backend="mamba", chunk=48)


@pytest.mark.parametrize("missing", ["mamba_ssm", "triton"])
def test_mamba_without_its_packages_says_how_to_get_them(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba, "_spec", lambda name: None if name == missing else object())
    mamba.load_kernels.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=f"needs {missing}: install with `.*mamba-ssm.*'torch'"):
        mamba.load_kernels()


# --- calls that the kernels can index ---------------------------------------------------------------------


def test_a_call_that_fits_is_not_split() -> None:
    assert split_sizes((8, 2048, 8, 64), (8, 2048, 1, 64), 256) == (8, 2048)


def test_the_launch_grid_limits_chunks() -> None:
    """8 clips of 256 blocks and 64 chunks are 131,072 programs on an axis of 65,535."""
    shape = (8 * 256, 64 * 64, 1, 16)
    assert split_sizes(shape, (*shape[:2], 1, 16), 64) == (GRID // 64, 4096)
    assert split_sizes((GRID, 64, 1, 16), (GRID, 64, 1, 16), 64) == (GRID, 64)
    assert split_sizes((GRID + 1, 64, 1, 16), (GRID + 1, 64, 1, 16), 64) == (GRID, 64)


@pytest.mark.parametrize("b, length, h, p, g, n, chunk", [
    (128, 16384, 24, 64, 1, 128, 256),  # x alone is 3.2e9 numbers
    (4096, 64, 24, 64, 1, 256, 64),  # the states are wider than x
    (3, 65536, 4, 16, 4, 512, 256),  # B is wider than x
    (1, 40_000_000, 2, 64, 1, 16, 256),  # a single row is too long
])  # fmt: skip
def test_no_tensor_of_a_call_has_more_numbers_than_32_bits_count(
    b: int, length: int, h: int, p: int, g: int, n: int, chunk: int
) -> None:
    rows, tokens = split_sizes((b, length, h, p), (b, length, g, n), chunk)
    chunks = -(-tokens // chunk)

    def sizes(rows: int) -> list[int]:
        padded = rows * chunks * chunk
        return [padded * h * p, padded * g * n, padded * g * chunk, rows * chunks * h * p * n]

    assert max(sizes(rows)) <= INDEX and rows * chunks * g <= GRID
    assert 1 <= rows <= b and (tokens == length or (rows == 1 and tokens % chunk == 0))
    if tokens == length and rows < b:
        assert max(sizes(rows + 1)) > INDEX or (rows + 1) * chunks * g > GRID  # not smaller than it has to be


def test_exactly_the_limit_fits() -> None:
    shape, keys = (4, 32, 2, 8), (4, 32, 1, 4)
    per_row = 2 * 16 * 2 * 8  # two chunks of 16 tokens
    assert split_sizes(shape, keys, 16, index=4 * per_row) == (4, 32)
    assert split_sizes(shape, keys, 16, index=4 * per_row - 1) == (3, 32)
    assert split_sizes(shape, keys, 16, index=per_row) == (1, 32)
    assert split_sizes(shape, keys, 16, index=per_row - 1) == (1, 16)
    with pytest.raises(ValueError, match="more than mamba-ssm can index"):
        split_sizes(shape, keys, 16, index=per_row // 2 - 1)


@pytest.mark.parametrize("grid, calls", [(1000, 1), (12, 2), (4, 5), (2, 10), (1, 20)])
def test_a_split_call_gives_what_one_call_gives(grid: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the kernels: our own scan, that refuses what the kernels cannot launch."""
    made = []

    def kernels(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, **options: Any) -> Any:
        assert x.shape[0] * -(-x.shape[1] // chunk) <= grid
        assert all(tensor.is_contiguous() for tensor in (x, dt, A, B, C, options["initial_states"]))
        assert options["return_final_states"]
        made.append(x.shape)
        return chunked.chunked_scan(x, dt, A, B, C, options["initial_states"], chunk)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(mamba, "load_kernels", lambda: kernels)
    monkeypatch.setattr(mamba, "split_sizes", lambda x, B, chunk: split_sizes(x, B, chunk, grid=grid))
    inputs = problem(50, 1, 0.1, torch.float32, b=5)
    found = outputs_and_gradients(mamba_scan, inputs, chunk=16)
    assert len(made) == calls
    for name, one, other in zip(NAMES, found, outputs_and_gradients(scan, inputs), strict=True):
        assert worst(one, other) <= 2e-6, name
