"""How far back a model can remember: the half-lives of its states, and the reach of its windows, in frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longtake.models.config import ModelConfig
from longtake.models.world_model import Layer, WorldModel


@dataclass(frozen=True)
class Horizon:
    """Where a model's memory ends."""

    half_lives: dict[int, tuple[float, float]]
    """For each layer that scans, the median and the longest half-life over heads, in frames."""
    window: int
    """Frames that the stack of local mixers reaches back, the current one included; 1 without local mixers."""
    forgets: bool
    """False with attention to every frame."""

    @property
    def longest(self) -> tuple[int, float] | None:
        """The layer that remembers longest, and its longest half-life; None where no layer scans."""
        if not self.half_lives:
            return None
        layer = max(self.half_lives, key=lambda number: self.half_lives[number][1])
        return layer, self.half_lives[layer][1]


def horizon(model: WorldModel) -> Horizon:
    """The horizon of a model as it is, trained or fresh; a state's decay at rest, which input speeds up or slows."""
    scans = {
        number: layer.scan.half_lives()
        for number, layer in enumerate(model.layers)
        if isinstance(layer, Layer) and layer.scan is not None
    }
    return Horizon(
        {number: (float(lives.median()), float(lives.max())) for number, lives in scans.items()},
        window_reach(model.config),
        not any(layer.keeps_every_frame for layer in model.config.stack),
    )


def fresh_horizon(config: ModelConfig, seed: int = 0) -> Horizon:
    """The horizon of a model that begins with this config; only its time scales are drawn."""
    with torch.device("meta"):
        model = WorldModel(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.layers:
            assert isinstance(layer, Layer)
            if layer.scan is not None:
                layer.scan.to_empty(device="cpu").draw_time_scales()
    return horizon(model)


def window_reach(config: ModelConfig) -> int:
    """Frames that the local mixers of a stack reach back, the current one included: layers pass on what they saw, so
    each adds its window less one (in chunks: its own and the one before). 1 without local mixers."""
    local = [layer for layer in config.stack if layer.local_class is not None]
    if config.chunk:
        return config.chunk * (len(local) + 1) if local else 1
    return 1 + sum(config.layer_window(layer) - 1 for layer in local)
