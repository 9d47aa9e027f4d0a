"""What a model carries from frame to frame, as one immutable value.

Letters: b streams, k blocks of the token grid, h heads, p head width, n state width, c channels of the convolution,
w its width, f frames kept, N tokens per frame, d attention head width, r rows of one group of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Frames = tuple[Tensor, ...]
"""What is kept of the last frames, each (b, f, N, ...): keys and values of attention, or inputs of a convolution."""


def last(values: Tensor, count: int, *, view: bool = False) -> Tensor:
    """The last `count` along the second axis, in bytes of their own: a view would hold all that it was cut from.

    `view`: the values are one themselves.
    """
    kept = values[:, values.shape[1] - count :]
    whole = count == values.shape[1] and not view
    return kept if whole else kept.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class SSMState:
    """Scans of one state width: `state` (r, h, p, n) in fp32 and `conv` (r, w - 1, c), their last inputs.

    `rows` (r) says which of the layer's b·k blocks these are; None: all of them, in order. With a nested state the
    blocks of a layer may differ in width, one entry per width. The last channels of `conv` are then `keys` groups of n,
    one per state dimension: Mamba-2 has two, what it writes and reads by. Where `keys` is None, the state stays whole.
    """

    state: Tensor
    conv: Tensor
    rows: Tensor | None = None
    keys: int | None = 2

    @property
    def width(self) -> int:
        """State dimensions n per channel."""
        return self.state.shape[-1]

    def narrow(self, width: int) -> SSMState:
        """The first `width` state dimensions, and the convolution's inputs that feed them."""
        rest, keyed = self._conv_parts()
        conv = torch.cat([rest, keyed[..., :width].flatten(-2)], -1)
        return replace(self, state=self.state[..., :width].contiguous(), conv=conv)

    def widen(self, width: int) -> SSMState:
        """The same state with zeros for the dimensions it does not have."""
        rest, keyed = self._conv_parts()
        more, grow = (0, width - self.width), torch.nn.functional.pad
        conv = torch.cat([rest, grow(keyed, more).flatten(-2)], -1)
        return replace(self, state=grow(self.state, more), conv=conv)

    def with_width(self, width: int) -> SSMState:
        """The same state in `width` dimensions; as it is where none can be left out."""
        if self.keys is None or width == self.width:
            return self
        return self.narrow(width) if width < self.width else self.widen(width)

    def _conv_parts(self) -> tuple[Tensor, Tensor]:
        """Inputs that belong to no state dimension, and those that do (r, w - 1, keys, n)."""
        assert self.keys is not None
        keyed = self.keys * self.width
        rest, last = self.conv.split([self.conv.shape[-1] - keyed, keyed], -1)
        return rest, last.unflatten(-1, (self.keys, self.width))


@dataclass(frozen=True)
class LayerMemory:
    """What one layer carries; a part is empty where the layer has no such mixer."""

    ssm: tuple[SSMState, ...] = ()
    cache: Frames = ()
    """Of full attention: every frame so far."""
    window: Frames = ()
    """Of the local mixer: the last few frames."""


@dataclass(frozen=True)
class Memory:
    """Everything a model carries: one entry per layer, and the number of frames seen so far.

    `behind` (b), on the CPU: how many fewer than `frames` each stream has seen, where streams of different ages go side
    by side; None: all are as old.
    """

    layers: tuple[LayerMemory, ...]
    frames: int = field(default=0)
    behind: Tensor | None = None

    @property
    def seen(self) -> int | Tensor:
        """Frames that each stream has seen: one number, or (b)."""
        return self.frames if self.behind is None else self.frames - self.behind

    def detach(self) -> Memory:
        """The same memory cut from the graph: the border of truncated back-propagation."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """A memory with `function` applied to every tensor of values."""
        return replace(self, layers=tuple(_map_layer(layer, function) for layer in self.layers))

    def of_streams(self, chosen: Sequence[int], streams: int) -> Memory:
        """The memory of some of its `streams` streams, in that order; one that is named twice is there twice."""
        which = torch.tensor(chosen)

        def take(values: Tensor) -> Tensor:
            apart: Tensor = values.unflatten(0, (streams, -1))
            return apart[which.to(values.device)].flatten(0, 1)

        _require_whole_states(self)
        part = self.map(take)
        if self.behind is None:
            return part
        behind = self.behind[which]
        if bool((behind == behind[0]).all()):
            return replace(part, frames=self.frames - int(behind[0]), behind=None)
        return replace(part, behind=behind)

    @staticmethod
    def side_by_side(memories: Sequence[Memory], streams: Sequence[int]) -> Memory:
        """Memories of so many streams each as one, whatever the age of each.

        Raises:
            ValueError: they do not keep the same number of frames, as full attention does at different ages.
        """
        parts = [memory.tensors for memory in memories]
        if len({tuple(part.shape[1:] for part in tensors) for tensors in parts}) > 1:
            raise ValueError("memories: they keep unlike numbers of frames, so they cannot go side by side")
        joined = iter([torch.cat(same) for same in zip(*parts, strict=True)])
        ages = torch.cat([torch.as_tensor(m.seen).expand(n) for m, n in zip(memories, streams, strict=True)])
        oldest = int(ages.max())
        behind = None if bool((ages == oldest).all()) else oldest - ages
        return Memory(memories[0].map(lambda _: next(joined)).layers, oldest, behind)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor of values, in order. Raises ValueError where rows are no streams."""
        _require_whole_states(self)
        tensors: list[Tensor] = []

        def keep(values: Tensor) -> Tensor:
            tensors.append(values)
            return values

        self.map(keep)
        return tensors

    def with_width(self, width: int) -> Memory:
        """Every scan's state cut to its first `width` dimensions, or filled up with zeros (nested state)."""
        layers = (replace(layer, ssm=tuple(s.with_width(width) for s in layer.ssm)) for layer in self.layers)
        return replace(self, layers=tuple(layers))

    @property
    def states(self) -> Iterator[tuple[str, Tensor]]:
        """Name of each layer that scans, and its states (r, h, p, n), one pair per width."""
        for number, layer in enumerate(self.layers):
            for part in layer.ssm:
                yield f"layers.{number}.ssm", part.state

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes carried by part, for all streams together: `state`, `conv`, `cache`, `window`, and their `total`."""
        parts = {"state": 0, "conv": 0, "cache": 0, "window": 0}
        for layer in self.layers:
            parts["state"] += sum(part.state.nbytes for part in layer.ssm)
            parts["conv"] += sum(part.conv.nbytes for part in layer.ssm)
            parts["cache"] += sum(tensor.nbytes for tensor in layer.cache)
            parts["window"] += sum(tensor.nbytes for tensor in layer.window)
        return {**parts, "total": sum(parts.values())}

    def to_dict(self) -> dict[str, Tensor]:
        """A flat dict of tensors, so that a rollout can be saved (as safetensors, say) and continued."""
        flat = {"frames": torch.tensor(self.frames), "layers": torch.tensor(len(self.layers))}
        if self.behind is not None:
            flat["behind"] = self.behind
        for number, layer in enumerate(self.layers):
            for index, part in enumerate(layer.ssm):
                flat[f"{number}.ssm.{index}.state"], flat[f"{number}.ssm.{index}.conv"] = part.state, part.conv
                flat[f"{number}.ssm.{index}.keys"] = torch.tensor(WHOLE if part.keys is None else part.keys)
                if part.rows is not None:
                    flat[f"{number}.ssm.{index}.rows"] = part.rows
            for name in ("cache", "window"):
                flat |= {f"{number}.{name}.{index}": tensor for index, tensor in enumerate(getattr(layer, name))}
        return {name: tensor.contiguous() for name, tensor in flat.items()}

    @staticmethod
    def from_dict(flat: dict[str, Tensor]) -> Memory:
        """The memory that `to_dict` wrote.

        Raises:
            KeyError: a part is missing.
        """

        def parts(number: int, name: str) -> Frames:
            numbers = sorted(int(key.split(".")[2]) for key in flat if key.startswith(f"{number}.{name}."))
            return tuple(flat[f"{number}.{name}.{index}"] for index in numbers)

        def scans(number: int) -> tuple[SSMState, ...]:
            start = f"{number}.ssm."
            numbers = sorted({int(key.split(".")[2]) for key in flat if key.startswith(start)})
            return tuple(_read_state({name: flat.get(f"{start}{i}.{name}") for name in STATE_PARTS}) for i in numbers)

        layers = range(int(flat["layers"]))
        return Memory(
            tuple(LayerMemory(scans(i), parts(i, "cache"), parts(i, "window")) for i in layers),
            int(flat["frames"]),
            flat.get("behind"),
        )


STATE_PARTS = ("state", "conv", "rows", "keys")
WHOLE = -1
"""In a saved memory, the keys of a state that stays whole."""


def _read_state(parts: dict[str, Tensor | None]) -> SSMState:
    state, conv, rows, keys = (parts[name] for name in STATE_PARTS)
    if state is None or conv is None:
        raise KeyError("state" if state is None else "conv")
    # Memories saved when Mamba-2 was the only mixer with a state do not say how many groups it has.
    groups = SSMState.keys if keys is None else int(keys)
    return SSMState(state, conv, rows, None if groups == WHOLE else groups)


def _require_whole_states(memory: Memory) -> None:
    """Raise ValueError where the blocks of a layer have states of different widths: rows are then no streams."""
    if any(part.rows is not None for layer in memory.layers for part in layer.ssm):
        raise ValueError("memory: with states of several widths its streams cannot be told apart")


def _map_layer(layer: LayerMemory, function: Callable[[Tensor], Tensor]) -> LayerMemory:
    return LayerMemory(
        ssm=tuple(replace(part, state=function(part.state), conv=function(part.conv)) for part in layer.ssm),
        cache=tuple(function(tensor) for tensor in layer.cache),
        window=tuple(function(tensor) for tensor in layer.window),
    )
