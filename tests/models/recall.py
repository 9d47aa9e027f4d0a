"""Planted associative recall: keys are written one after another, each several times, then asked for the last value.

One token a frame: a key beside a value, or a key alone, which asks. What a key was given before is a distractor: a
mixer that adds has a sum of all of it, one that overwrites has the last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.models.config import LayerConfig, ModelConfig

KEYS, WIDTH = 6, 4
SIZES = {"height": 4, "width": 4, "patch": 4, "dim": 48, "heads": 2, "d_state": 16, "headdim": 16, "expand": 1}


class Recaller(nn.Module):
    """A mixer over time between two projections."""

    def __init__(self, mixer: str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        layer = LayerConfig(mixer=mixer, local="none", options=options or {})
        config = ModelConfig(**SIZES, layers=[layer])
        assert layer.mixer_class is not None
        self.read = nn.Linear(KEYS + WIDTH + 1, config.dim)
        self.mixer = layer.mixer_class.build(config, layer)
        self.out = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, WIDTH))

    def forward(self, shown: Tensor) -> Tensor:
        """Shown (b, t, keys + width + 1) → values (b, t, width)."""
        x = self.read(shown)[:, :, None]
        return self.out(x + self.mixer(x, (), 0, x[:, :, 0])[0])[:, :, 0]


def clips(count: int, writes: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (b, writes + keys, ...), and the last value of every key, in the order in which they are asked."""
    keys = torch.cat([torch.randint(KEYS, (count, writes - KEYS), generator=draw), shuffled(count, draw)], 1)
    asked, values = shuffled(count, draw), torch.randn(count, writes, WIDTH, generator=draw)
    written = torch.cat([F.one_hot(keys, KEYS), torch.zeros(count, writes, 1)], -1)
    asking = torch.cat([F.one_hot(asked, KEYS), torch.ones(count, KEYS, 1)], -1)
    shown = torch.cat([torch.cat([written, values], -1), torch.cat([asking, torch.zeros(count, KEYS, WIDTH)], -1)], 1)
    at = (keys[:, None] == asked[..., None]) * torch.arange(1, writes + 1)
    return shown, values.gather(1, at.argmax(-1)[..., None].expand(-1, -1, WIDTH))


def shuffled(count: int, draw: torch.Generator) -> Tensor:
    """Every key once, in an order of its own for each of `count` clips."""
    return torch.rand(count, KEYS, generator=draw).argsort(1)


def unexplained(
    mixer: str, options: dict[str, Any] | None = None, writes: int = 18, steps: int = 300, seed: int = 0
) -> float:
    """Share of the asked values' variance that a trained mixer does not give back: 0 all recalled, 1 nothing."""
    torch.manual_seed(seed)
    draw, model = torch.Generator().manual_seed(seed), Recaller(mixer, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 20) * (1 - step / steps)
        shown, wanted = clips(32, writes, draw)
        loss = (model(shown)[:, -KEYS:] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    shown, wanted = clips(256, writes, torch.Generator().manual_seed(10**6))
    with torch.no_grad():
        return float((model(shown)[:, -KEYS:] - wanted).square().mean() / wanted.square().mean())
