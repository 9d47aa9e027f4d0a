"""The chunked scan against the recurrence in float64: values and every gradient."""

import pytest
import torch
from torch import Tensor

from models.ssd import scan, scan_reference


def problem(length: int, groups: int, decay: float, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length + groups)
    b, h, p, n = 2, 4, 8, 16

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


def outputs_and_gradients(function, inputs: list[Tensor], **options: int) -> list[Tensor]:
    y, state = function(*inputs, **options)
    weights = torch.Generator().manual_seed(0)
    loss = sum(
        (part.double() * torch.randn(part.shape, generator=weights, dtype=torch.float64)).sum() for part in (y, state)
    )
    return [y, state, *torch.autograd.grad(loss, inputs)]


def worst(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("length", [1, 63, 500])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("decay", [0.01, 1.0])
@pytest.mark.parametrize("chunk", [16, 64])
def test_chunked_scan_equals_the_recurrence(length: int, groups: int, decay: float, chunk: int) -> None:
    expected = outputs_and_gradients(scan_reference, problem(length, groups, decay, torch.float64))
    found = outputs_and_gradients(scan, problem(length, groups, decay, torch.float32), chunk=chunk)
    names = ["y", "state", "dx", "ddt", "dA", "dB", "dC", "dh0"]
    for name, one, other in zip(names, found, expected, strict=True):
        assert worst(one, other) <= (1e-5 if name == "dA" else 5e-6), name


def test_a_cut_with_the_state_carried_changes_nothing() -> None:
    inputs = problem(100, 1, 0.1, torch.float64)
    x, dt, A, B, C, h0 = inputs

    def cut(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        state, ys = h0, []
        for start, stop in ((0, 1), (1, 38), (38, 100)):
            y, state = scan(x[:, start:stop], dt[:, start:stop], A, B[:, start:stop], C[:, start:stop], state)
            ys.append(y)
        return torch.cat(ys, 1), state

    for one, other in zip(outputs_and_gradients(cut, inputs), outputs_and_gradients(scan, inputs), strict=True):
        assert worst(one, other.double()) <= 1e-5
