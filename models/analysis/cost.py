"""What a model costs at any length: floating-point operations and bytes carried, counted on the meta device.

Nothing is computed: PyTorch's own counter watches the real code run on tensors without data. Letters: b streams,
t frames, N tokens per frame, D width, E width of the conditioning vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.memory import LayerMemory, Memory
from longtake.models.world_model import Layer, WorldModel
from longtake.motion import POSE_WIDTHS


class Costs:
    """Costs of a causal model, by frames; one clip or stream at a time."""

    def __init__(self, config: ModelConfig) -> None:
        if not config.causal:
            raise ValueError("causal: false; costs are those of a model that carries a memory")
        self.config = config
        with torch.device("meta"):
            self._model = WorldModel(config)
        self.parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._curves: dict[str, _Quadratic] = {}
        self._sampled: dict[int, float] = {}
        with torch.device("meta"):
            self._full = remembered(self._model, longest_window(config))

    def training_flops(self, frames: int) -> float:
        """Of a forward and a backward pass over a clip. Exact where every scan's length is whole chunks."""
        if not self._curves:
            distinct = {str(layer): layer for layer in self.config.stack}
            self._curves = {name: _training_curve(self.config, layer) for name, layer in distinct.items()}
            self._outside = self._outside_curve()
        return self._outside(frames) + sum(self._curves[str(layer)](frames) for layer in self.config.stack)

    def frame_flops(self, context: int, sampler: SamplerConfig) -> float:
        """Of one generated frame after `context` frames: all denoising calls, and the one that remembers it."""
        calls = sampler.steps * (1 if sampler.guidance == 1 else 2) + 1
        full = self._full.frames
        if context <= 2 * full:
            return calls * self._call_flops(context)
        each = (self._call_flops(2 * full) - self._call_flops(full)) / full  # linear once the windows are full
        return calls * (self._call_flops(full) + each * (context - full))

    def carried(self, context: int) -> dict[str, int]:
        """Bytes of one stream's memory after `context` frames, by part (`Memory.nbytes`)."""
        return self._memory(context).nbytes

    @property
    def states(self) -> dict[int, int]:
        """Bytes of one stream's state in each layer that carries one, whatever the length."""
        sizes = {i: sum(part.state.nbytes for part in layer.ssm) for i, layer in enumerate(self._full.layers)}
        return {number: size for number, size in sizes.items() if size}

    def _call_flops(self, context: int) -> float:
        """One call of the model for the next frame, or a chunk's share."""
        if context not in self._sampled:
            together, memory = self.config.chunk or 1, self._memory(context)
            with torch.device("meta"), torch.no_grad():
                self._sampled[context] = _count(lambda: _show(self._model, together, memory)) / together
        return self._sampled[context]

    def _memory(self, context: int) -> Memory:
        chunk = self.config.chunk or 1
        context = chunk * -(-context // chunk)
        with torch.device("meta"):
            return grown(self._full, context) if context >= self._full.frames else remembered(self._model, context)

    def _outside_curve(self) -> _Quadratic:
        """The model without its layers: one layer's model less that layer."""
        layer = self.config.stack[0]
        one = ModelConfig.model_validate(self.config.model_dump() | {"layers": [layer.model_dump()], "depth": 1})
        with torch.device("meta"):
            model = WorldModel(one)
            whole = _count(lambda: _backward(_show(model, 1, None)[0]))
            inside = _count(_layer_pass(one, layer, 1))
        return _Quadratic(0.0, whole - inside, 0.0)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a clip's forward pass keeps for its backward pass, and those of the memory after it."""

    constant: float
    per_frame: float
    carried: int

    def kept(self, frames: int) -> float:
        """Of a clip through which gradients flow."""
        return self.constant + self.per_frame * frames


def footprint(config: ModelConfig, recompute: bool = False) -> Footprint:
    """Of one clip in fp32, from two short ones on the meta device.

    There attention takes its plain form, so this is up to a third more than a CPU or a card keeps; what grows with the
    square of the frames (full attention in that form) is left out.
    """
    short = 8 * (config.chunk or 1)
    with torch.device("meta"):
        model = WorldModel(config)
    model.recompute = recompute
    (one, _), (two, carried) = _kept(model, short), _kept(model, 2 * short)
    return Footprint(2 * one - two, (two - one) / short, carried)


def _kept(model: WorldModel, frames: int) -> tuple[float, int]:
    """Bytes of the tensors that autograd holds after a forward pass, parameters left out, and of the memory."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.device("meta"), hooks:
        output, memory = _show(model, frames, None)  # the output keeps what was packed alive
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = sum(size for place, size in held.items() if place not in own) if output.requires_grad else 0
    return float(kept), memory.nbytes["total"] if memory is not None else 0


def longest_window(config: ModelConfig) -> int:
    """Frames after which a memory's windows are full; in the chunk form, in whole chunks."""
    chunk = config.chunk or 1
    return chunk * -(-max(config.layer_window(layer) for layer in config.stack) // chunk)


def remembered(model: WorldModel, frames: int, streams: int = 1) -> Memory:
    """A memory as large as that of `frames` frames, without the cost of showing them: its caches repeat a few.

    Good for measuring only. With attention in chunks, `frames` is rounded up to whole ones.

    Raises:
        ValueError: less than one frame.
    """
    if frames < 1:
        raise ValueError(f"frames: {frames}; a memory is of one frame at least")
    chunk = model.config.chunk or 1
    frames = -(-frames // chunk) * chunk
    with torch.no_grad():
        _, memory = _show(model, min(frames, longest_window(model.config)), None, streams)
    assert memory is not None
    return grown(memory, frames)


def grown(memory: Memory, frames: int) -> Memory:
    """A memory whose windows are full, with its caches repeated up to `frames` frames."""
    repeats = -(-frames // memory.frames)

    def longer(layer: LayerMemory) -> LayerMemory:
        return replace(layer, cache=tuple(part.repeat(1, repeats, 1, 1, 1)[:, :frames] for part in layer.cache))

    return Memory(tuple(longer(layer) for layer in memory.layers), frames)


def show(model: WorldModel, frames: int, memory: Memory | None = None, streams: int = 1) -> Tensor:
    """The model's prediction for noise under arbitrary conditions, (b, t, C, H, W)."""
    return _show(model, frames, memory, streams)[0]


def conditions_for(config: ModelConfig, frames: int, streams: int = 1) -> Conditions:
    """Some conditions of the right kinds: a pose at the origin, no action, and zeros."""
    return Conditions(
        torch.zeros(streams, frames, POSE_WIDTHS[config.pose]),
        torch.zeros(streams, frames, config.action_dim),
        state=torch.zeros(streams, frames, config.state_dim),
        task=torch.zeros(streams, frames, dtype=torch.int64),
        time=torch.zeros(streams, frames),
    )


def crossing(ours: Callable[[int], float], theirs: Callable[[int], float], limit: int = 10**7) -> int | None:
    """The first frame, up to `limit`, from which on `theirs` costs more; both costs never fall, `ours` stays below."""
    if theirs(limit) <= ours(limit):
        return None
    low, high = 0, limit  # theirs is not above ours at low (0: nothing known), and is at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if theirs(middle) > ours(middle) else (middle, high)
    return high


class _Quadratic:
    """a t² + b t + c."""

    def __init__(self, a: float, b: float, c: float) -> None:
        self.a, self.b, self.c = a, b, c

    def __call__(self, t: int) -> float:
        return self.a * t * t + self.b * t + self.c

    @staticmethod
    def through(unit: int, one: float, two: float, three: float) -> _Quadratic:
        """The one with these values at unit, 2 unit and 3 unit."""
        a = (three - 2 * two + one) / 2
        b = two - one - 3 * a
        return _Quadratic(a / unit**2, b / unit, one - a - b)


def _training_curve(config: ModelConfig, layer: LayerConfig) -> _Quadratic:
    """A layer's forward and backward pass by frames, from short clips: linear without full attention."""
    kind = layer.mixer_class
    unit = math.lcm(kind.period(config, layer) if kind is not None else 1, config.chunk or 1)
    with torch.device("meta"):
        one, two = (_count(_layer_pass(config, layer, i * unit)) for i in (1, 2))
        three = _count(_layer_pass(config, layer, 3 * unit)) if layer.keeps_every_frame else 2 * two - one
    return _Quadratic.through(unit, one, two, three)


def _layer_pass(config: ModelConfig, layer: LayerConfig, frames: int) -> Callable[[], object]:
    module = Layer(config, layer)
    shared = Layer(config.model_copy(update={"share_local": False}), layer).local if config.share_local else None
    x = torch.empty(1, frames, math.prod(config.grid), config.dim, requires_grad=True)
    condition = torch.empty(1, frames, config.condition_dim or config.dim, requires_grad=True)
    embedded = torch.empty_like(condition)
    return lambda: _backward(module(x, condition, embedded, LayerMemory(), 0, shared)[0])


def _backward(y: Tensor) -> None:
    torch.autograd.backward(y, torch.empty_like(y))


def _show(model: WorldModel, frames: int, memory: Memory | None, streams: int = 1) -> tuple[Tensor, Memory | None]:
    config = model.config
    x = torch.randn(streams, frames, config.channels, config.height, config.width)
    output: tuple[Tensor, Memory | None] = model(
        x, torch.full((streams, frames), 0.5), conditions_for(config, frames, streams), memory
    )
    return output


def _count(run: Callable[[], object]) -> float:
    """Floating-point operations of a call: matrix products, attention and convolutions."""
    correct: dict[Any, Any] = {
        torch.ops.aten.convolution_backward: _convolution_backward,
        torch.ops.aten.linalg_solve_triangular: _solve_triangular,
    }
    with FlopCounterMode(display=False, custom_mapping=correct) as counter:
        run()
    return float(counter.get_total_flops())


def _solve_triangular(system: list[int], right: list[int], **_: Any) -> int:
    """Half of a product's, which PyTorch's counter does not know."""
    return math.prod(right) * system[-1]


def _convolution_backward(grad: list[int], _x: list[int], weight: list[int], *rest: Any, **_: Any) -> int:
    """Each gradient costs what the forward pass does; PyTorch's own formula forgets the groups (torch 2.13)."""
    wanted: list[bool] = rest[-1]  # of the input, of the weight, of the bias
    return sum(wanted[:2]) * 2 * math.prod(grad) * math.prod(weight[1:])
