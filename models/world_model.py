"""The world model: a diffusion transformer whose layers mix by block-wise scans and frame-local attention.

Method: "Long-Context State-Space Video World Models" (2025), section 3. Letters: b clips, t frames, C channels,
H·W pixels, N tokens per frame, D width, E width of the conditioning vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longtake.models.conditions import ConditionEmbedding, Conditions, NoiseEmbedding
from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.memory import LayerMemory, Memory, SSMState
from longtake.models.mixers.base import BlockScan, Mixer


class Layer(nn.Module):
    """AdaLN → mixer over time → gate, AdaLN → local mixer → gate, AdaLN → feed-forward → gate."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        kind, local = layer.mixer_class, layer.local_class
        self.name = layer.mixer
        if kind is not None:
            self.add_module(self.name, kind.build(config, layer))
            if not (config.causal or kind.sees_both_ways):
                self.add_module(f"{self.name}_back", kind.build(config, layer))
        self.has_local = local is not None
        self.local = local.build(config, layer) if local is not None and not config.share_local else None
        hidden = round(config.dim * config.feed_forward)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.dim)
        )
        self.branches = 1 + (kind is not None) + self.has_local
        self.modulation = nn.Linear(config.condition_dim or config.dim, 3 * self.branches * config.dim)

    @property
    def mixer(self) -> Mixer | None:
        """What mixes over time; its parameters lie under its name."""
        return cast(Mixer | None, self._modules.get(self.name))

    @property
    def mixer_back(self) -> Mixer | None:
        """A second one that runs from the end, in a model that is not causal."""
        return cast(Mixer | None, self._modules.get(f"{self.name}_back"))

    @property
    def scan(self) -> BlockScan | None:
        """The mixer, if it carries a state from frame to frame."""
        return self.mixer if isinstance(self.mixer, BlockScan) else None

    @torch.no_grad()
    def open_mixer(self, scale: Tensor) -> None:
        """Let the mixer take part from the start, for a pretrained one: gate 1, and a norm scaled by `scale` (D)."""
        _shift, scale_bias, gate_bias = self.modulation.bias.chunk(3 * self.branches)[:3]
        scale_bias.copy_(scale - 1)
        gate_bias.fill_(1)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        embedded: Tensor,
        memory: LayerMemory,
        first_frame: int | Tensor,
        shared: Mixer | None,
    ) -> tuple[Tensor, LayerMemory]:
        """x (b, t, N, D), condition (b, t, E), embedded (b, t, E; it without noise) → x and what is carried on."""
        modulation = list(self.modulation(condition)[:, :, None].chunk(3 * self.branches, -1))
        part, window = "cache" if self.scan is None else "ssm", memory.window
        kept = getattr(memory, part)
        if self.mixer is not None:
            shift, scale, gate, *modulation = modulation
            normed = _modulate(x, shift, scale)
            y, kept = self.mixer(normed, kept, first_frame, embedded)
            if self.mixer_back is not None:
                y = y + self.mixer_back(normed.flip(1), (), 0, embedded.flip(1))[0].flip(1)
            x = x + gate * y
        local = self.local if self.local is not None else shared
        if self.has_local and local is not None:
            shift, scale, gate, *modulation = modulation
            y, window = local(_modulate(x, shift, scale), window, first_frame, embedded)
            x = x + gate * y
        shift, scale, gate = modulation
        x = x + gate * self.feed_forward(_modulate(x, shift, scale))
        return x, LayerMemory(**{part: kept, "window": window})


class WorldModel(nn.Module):
    """Noisy frames + noise levels + conditions + memory → prediction per frame + memory.

    The same call trains (a whole clip, no memory), prefills (context, memory kept) and rolls out (one frame at a
    time). It never changes the memory it is given. With `recompute`, training keeps only what enters each layer and
    computes the rest again in the backward pass (gradient checkpointing). `trained_frames` is the longest clip that
    the weights were trained on, where that is known; `shown_context` whether they were ever shown a context.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.trained_frames: int | None = None
        self.shown_context = True
        pixels = config.channels * config.patch**2
        rows, columns = config.grid
        condition_dim = config.condition_dim or config.dim
        self.patches_in = nn.Linear(pixels, config.dim)
        self.place = nn.Parameter(torch.zeros(rows * columns, config.dim))
        self.noise = NoiseEmbedding(condition_dim)
        self.conditions = ConditionEmbedding(config, condition_dim)
        in_tokens = config.condition_input == "norms_and_tokens"
        self.condition_in = nn.Linear(condition_dim, config.dim) if in_tokens and condition_dim != config.dim else None
        stack = config.stack
        self.shared = _shared_local(config) if config.share_local else None
        self.layers = nn.ModuleList(Layer(config, layer) for layer in stack)
        self.modulation_out = nn.Linear(condition_dim, 2 * config.dim)
        self.patches_out = nn.Linear(config.dim, pixels)
        self._initialise()

    def _initialise(self) -> None:
        """Place codes of unit variance; AdaLN-Zero: every branch starts closed, so depth costs nothing at first.

        With codes much smaller than the tokens beside them attention cannot tell a frame's tokens apart.
        """
        nn.init.normal_(self.place)
        for name, parameter in self.named_parameters():
            if "modulation" in name or name.startswith("patches_out"):
                nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, noise_level: Tensor, conditions: Conditions, memory: Memory | None = None
    ) -> tuple[Tensor, Memory | None]:
        """Predict velocity or clean frames (`config.prediction`) for every frame.

        Args:
            x: noised frames (b, t, C, H, W), clean pixels in [-1, 1].
            noise_level: (b, t) in [0, 1]; 0 clean, 1 pure noise.
            conditions: per frame.
            memory: what the frames before carried; None at a stream's start.

        Returns:
            The prediction, like x, and the memory after the last frame: None from a model that is not causal.

        Raises:
            ValueError: frames of another shape than the config's; a memory for a model that is not causal.
        """
        config = self.config
        self._require_fit(x, memory)
        carried = memory.layers if memory is not None else (LayerMemory(),) * len(self.layers)
        first_frame = memory.seen if memory is not None else 0
        sides = {"p": config.patch, "q": config.patch}
        tokens = rearrange(x, "b t C (h p) (w q) -> b t (h w) (C p q)", **sides)
        tokens = self.patches_in(tokens) + self.place
        embedded = self.conditions(conditions)
        condition = self.noise(noise_level) + embedded
        if config.condition_input == "norms_and_tokens":
            shown = condition if self.condition_in is None else self.condition_in(condition)
            tokens = tokens + shown[:, :, None]
        condition = F.silu(condition)
        after = []
        for layer, kept in zip(self.layers, carried, strict=True):
            arguments = (tokens, condition, embedded, kept, first_frame, self.shared)
            if self.recompute and torch.is_grad_enabled():
                tokens, kept = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                tokens, kept = layer(*arguments)
            after.append(kept)
        shift, scale = self.modulation_out(condition)[:, :, None].chunk(2, -1)
        tokens = self.patches_out(_modulate(tokens, shift, scale))
        prediction = rearrange(tokens, "b t (h w) (C p q) -> b t C (h p) (w q)", h=config.grid[0], **sides)
        return prediction, _after(memory, tuple(after), x.shape[1]) if config.causal else None

    def empty_memory(self, streams: int, widths: int | Sequence[Tensor] | None = None) -> Memory:
        """Nothing remembered yet, in states of chosen width (nested state).

        Args:
            streams: number of streams b.
            widths: state dimensions of every block, or per layer a tensor (b·k) with those of each block of each
                stream (not read for layers whose mixer has no state, or one that is not cut); all of them when None.

        Raises:
            ValueError: a width below 1 or above the config's `d_state`.
        """
        layers = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            chosen = widths if widths is None or isinstance(widths, int) else widths[number]
            layers.append(LayerMemory(_empty_states(layer.scan, streams, chosen, like=self.place)))
        return Memory(tuple(layers), 0)

    def _require_fit(self, x: Tensor, memory: Memory | None) -> None:
        config = self.config
        if x.shape[2:] != (config.channels, config.height, config.width):
            raise ValueError(
                f"x: frames are {tuple(x.shape[2:])}, this model takes {(config.channels, config.height, config.width)}"
            )
        if memory is not None and not config.causal:
            raise ValueError("memory: this model is not causal (causal: false), so it can carry none")
        if memory is not None and len(memory.layers) != len(self.layers):
            raise ValueError(f"memory: of {len(memory.layers)} layers, but this model has {len(self.layers)}")


def _after(before: Memory | None, layers: tuple[LayerMemory, ...], frames: int) -> Memory:
    """The memory that so many frames later is carried on."""
    return Memory(layers, frames) if before is None else Memory(layers, before.frames + frames, before.behind)


def _shared_local(config: ModelConfig) -> Mixer | None:
    """The local mixer that serves every layer."""
    return next((kind.build(config, layer) for layer in config.stack if (kind := layer.local_class)), None)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then the frame's own scale and shift (AdaLN)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _empty_states(
    scan: BlockScan | None, streams: int, widths: int | Tensor | None, like: Tensor
) -> tuple[SSMState, ...]:
    if scan is None:
        return ()
    if not scan.nests:
        widths = None
    if isinstance(widths, Tensor):
        at = {width: (widths == width).nonzero()[:, 0].to(like.device) for width in widths.unique().tolist()}
        rows = {width: len(indices) for width, indices in at.items()}
    else:
        at, rows = {}, {widths or scan.d_state: streams * scan.blocks}
    wrong = [width for width in rows if not 1 <= width <= scan.d_state]
    if wrong or sum(rows.values()) != streams * scan.blocks:
        raise ValueError(
            f"widths: {sum(rows.values())} of {sorted(rows)} dimensions, but {streams} streams have "
            f"{streams * scan.blocks} blocks here, with 1 to {scan.d_state} dimensions each"
        )
    return tuple(scan.empty_state(count, width, like, at.get(width)) for width, count in rows.items())
