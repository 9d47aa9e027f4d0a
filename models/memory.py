"""What a model carries from frame to frame, as one immutable value.

Letters: b streams, k blocks of the token grid, h heads, p head width, n state width, c channels of the convolution,
w its width, f frames kept in the window, N tokens per frame, d attention head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class SSMState:
    """One layer's scan: `state` (b·k, h, p, n) in fp32 and `conv` (b·k, w - 1, c), its last inputs."""

    state: Tensor
    conv: Tensor


@dataclass(frozen=True)
class WindowState:
    """One layer's window: keys and values of the last frames, each (b, f, N, h, d), positions baked into the keys."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class LayerMemory:
    """What one layer carries; a part is None where the layer has no such mixer."""

    ssm: SSMState | None = None
    window: WindowState | None = None


@dataclass(frozen=True)
class Memory:
    """Everything a model carries: one entry per layer, and the number of frames seen so far."""

    layers: tuple[LayerMemory, ...]
    frames: int

    def detach(self) -> Memory:
        """The same memory cut from the graph: the border of truncated back-propagation."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """A memory with `function` applied to every tensor."""
        return replace(self, layers=tuple(_map_layer(layer, function) for layer in self.layers))

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes carried by part: `state`, `conv`, `window`, and their `total`, for all streams together."""
        parts = {"state": 0, "conv": 0, "window": 0}
        for layer in self.layers:
            if layer.ssm is not None:
                parts["state"] += layer.ssm.state.nbytes
                parts["conv"] += layer.ssm.conv.nbytes
            if layer.window is not None:
                parts["window"] += layer.window.keys.nbytes + layer.window.values.nbytes
        return {**parts, "total": sum(parts.values())}


def _map_layer(layer: LayerMemory, function: Callable[[Tensor], Tensor]) -> LayerMemory:
    ssm, window = layer.ssm, layer.window
    return LayerMemory(
        ssm=None if ssm is None else SSMState(function(ssm.state), function(ssm.conv)),
        window=None if window is None else WindowState(function(window.keys), function(window.values)),
    )
