"""Copies of tensors in host memory, whose bytes are used again: fresh pages cost more than what is copied into them."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Spare = defaultdict[tuple[torch.Size, torch.dtype], list[Tensor]]


class HostMemory:
    """Lends memory for copies; what was released is lent again."""

    def __init__(self, device: str) -> None:
        self._pinned = device != "cpu"  # a card writes into pinned memory by itself
        self._spare: Spare = defaultdict(list)

    def copies(self) -> HostCopies:
        """For one snapshot."""
        return HostCopies(self._spare, self._pinned)


class HostCopies:
    """The copies of one snapshot: they are its own until it releases them."""

    def __init__(self, spare: Spare, pinned: bool) -> None:
        self._spare, self._pinned = spare, pinned
        self._lent: list[Tensor] = []

    def of_tensor(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous copy, in another type if one is given."""
        kind = dtype or tensor.dtype
        spare = self._spare[tensor.shape, kind]
        copied = spare.pop() if spare else torch.empty(tensor.shape, dtype=kind, pin_memory=self._pinned)
        copied.copy_(tensor.detach())
        self._lent.append(copied)
        return copied

    def of(self, state: Any) -> Any:
        """Nested values with all tensors copied: what is said later of the state is said of then."""
        return tree_map(lambda leaf: self.of_tensor(leaf) if torch.is_tensor(leaf) else deepcopy(leaf), state)

    def release(self) -> None:
        """They are written: their memory is for the next snapshot."""
        for copied in self._lent:
            self._spare[copied.shape, copied.dtype].append(copied)
        self._lent = []
