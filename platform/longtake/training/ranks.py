"""What the ranks of a process group tell each other: every rank calls the same function, one alone hears itself."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


def of_first(value: Value, world: int) -> Value:
    """Rank 0's value: ranks that look at a store by themselves could see different things."""
    if world > 1:
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]
    return value


def of_all(value: Value, world: int) -> list[Value]:
    """The value of every rank."""
    values = [value] * world
    if world > 1:
        import torch

        torch.distributed.all_gather_object(values, value)
    return values


def mean(numbers: dict[str, float], world: int, device: str) -> dict[str, float]:
    """One all-reduce of all numbers, in fp64 on a CPU."""
    if world == 1:
        return numbers
    import torch

    dtype = torch.float64 if device == "cpu" else torch.float32
    values = torch.tensor(list(numbers.values()), dtype=dtype, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(numbers, (values / world).tolist(), strict=True))


def wait(world: int) -> None:
    """Until all ranks have come here."""
    if world > 1:
        import torch

        torch.distributed.barrier()
