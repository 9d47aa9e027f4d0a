"""The world model: a diffusion transformer whose layers mix by block-wise scans and frame-local attention.

Method: "Long-Context State-Space Video World Models" (2025), section 3. Letters: b clips, t frames, C channels,
H·W pixels, N tokens per frame, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.conditions import ConditionEmbedding, Conditions, NoiseEmbedding
from models.config import LayerConfig, ModelConfig
from models.memory import LayerMemory, Memory
from models.mixers import BlockSSM, FrameLocalAttention


class Layer(nn.Module):
    """AdaLN → block-wise SSM → gate, AdaLN → frame-local attention → gate, AdaLN → feed-forward → gate."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.ssm = _build_ssm(config, layer) if layer.mixer == "ssm" else None
        self.attention = (
            FrameLocalAttention(config.dim, config.heads, config.layer_window(layer))
            if layer.local == "attention"
            else None
        )
        hidden = round(config.dim * config.feed_forward)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.dim)
        )
        branches = 1 + (self.ssm is not None) + (self.attention is not None)
        self.modulation = nn.Linear(config.dim, 3 * branches * config.dim)

    def forward(
        self, x: Tensor, condition: Tensor, memory: LayerMemory, first_frame: int
    ) -> tuple[Tensor, LayerMemory]:
        """x (b, t, N, D), condition (b, t, D) → x and what the layer carries on."""
        modulation = iter(
            self.modulation(F.silu(condition))[:, :, None].chunk(self.modulation.out_features // x.shape[-1], -1)
        )
        ssm, window = memory.ssm, memory.window
        if self.ssm is not None:
            shift, scale, gate = next(modulation), next(modulation), next(modulation)
            y, ssm = self.ssm(_modulate(x, shift, scale), ssm)
            x = x + gate * y
        if self.attention is not None:
            shift, scale, gate = next(modulation), next(modulation), next(modulation)
            y, window = self.attention(_modulate(x, shift, scale), window, first_frame)
            x = x + gate * y
        shift, scale, gate = next(modulation), next(modulation), next(modulation)
        x = x + gate * self.feed_forward(_modulate(x, shift, scale))
        return x, LayerMemory(ssm, window)


class WorldModel(nn.Module):
    """Noisy frames + noise levels + conditions + memory → prediction per frame + memory.

    The same call trains (a whole clip, no memory), prefills (context, memory kept) and rolls out (one frame at a
    time). It never changes the memory it is given.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.channels * config.patch**2
        rows, columns = config.grid
        self.patches_in = nn.Linear(pixels, config.dim)
        self.place = nn.Parameter(torch.zeros(rows * columns, config.dim))
        self.noise = NoiseEmbedding(config.dim)
        self.conditions = ConditionEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.layers)
        self.modulation_out = nn.Linear(config.dim, 2 * config.dim)
        self.patches_out = nn.Linear(config.dim, pixels)
        self._initialise()

    def _initialise(self) -> None:
        """Small normal place embeddings; AdaLN-Zero: every branch starts closed, so depth costs nothing at first."""
        nn.init.normal_(self.place, std=0.02)
        for name, parameter in self.named_parameters():
            if "modulation" in name or name.startswith("patches_out"):
                nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, noise_level: Tensor, conditions: Conditions, memory: Memory | None = None
    ) -> tuple[Tensor, Memory]:
        """Predict velocity or clean frames (`config.prediction`) for every frame.

        Args:
            x: noised frames (b, t, C, H, W), clean pixels in [-1, 1].
            noise_level: (b, t) in [0, 1]; 0 clean, 1 pure noise.
            conditions: per frame.
            memory: what the frames before carried; None at a stream's start.

        Raises:
            ValueError: frames of another shape than the config's.
        """
        config = self.config
        if x.shape[2:] != (config.channels, config.height, config.width):
            raise ValueError(
                f"x: frames are {tuple(x.shape[2:])}, this model takes {(config.channels, config.height, config.width)}"
            )
        carried = memory.layers if memory is not None else tuple(LayerMemory() for _ in self.layers)
        first_frame = memory.frames if memory is not None else 0
        sides = {"p": config.patch, "q": config.patch}
        tokens = rearrange(x, "b t C (h p) (w q) -> b t (h w) (C p q)", **sides)
        tokens = self.patches_in(tokens) + self.place
        condition = self.noise(noise_level) + self.conditions(conditions)
        if config.condition_input == "norms_and_tokens":
            tokens = tokens + condition[:, :, None]
        after = []
        for layer, layer_memory in zip(self.layers, carried, strict=True):
            tokens, layer_memory = layer(tokens, condition, layer_memory, first_frame)
            after.append(layer_memory)
        shift, scale = self.modulation_out(F.silu(condition))[:, :, None].chunk(2, -1)
        tokens = self.patches_out(_modulate(tokens, shift, scale))
        prediction = rearrange(tokens, "b t (h w) (C p q) -> b t C (h p) (w q)", h=config.grid[0], **sides)
        return prediction, Memory(tuple(after), first_frame + x.shape[1])


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then the frame's own scale and shift (AdaLN)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _build_ssm(config: ModelConfig, layer: LayerConfig) -> BlockSSM:
    rows, columns = layer.spatial_block
    return BlockSSM(
        config.dim,
        config.grid,
        (rows, columns),
        d_state=config.d_state,
        headdim=config.headdim,
        expand=config.expand,
        d_conv=config.d_conv,
    )
