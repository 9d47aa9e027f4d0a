"""Frames out, one after another: prefill a memory from the context, then denoise, show and remember frame by frame.

Letters: b streams, t frames, C channels, H·W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.conditions import Conditions
from models.config import SamplerConfig
from models.diffusion import add_noise, ddim_step, sampler_levels, to_clean
from models.memory import Memory
from models.world_model import WorldModel


@torch.no_grad()
def prefill(
    model: WorldModel,
    frames: Tensor,
    conditions: Conditions,
    memory: Memory | None = None,
    temporal_block: int = 64,
) -> Memory:
    """Show clean frames (b, t, C, H, W) to the model, `temporal_block` at a time, and return what it carries."""
    total = frames.shape[1]
    for start in range(0, total, temporal_block):
        stop = min(start + temporal_block, total)
        piece = frames[:, start:stop]
        level = piece.new_zeros(piece.shape[:2])
        _, memory = model(piece, level, conditions.frames(start, stop), memory)
    if memory is None:
        raise ValueError("frames: the context is empty; give at least one frame, or start with memory=None")
    return memory


@torch.no_grad()
def denoise_frame(model: WorldModel, noise: Tensor, condition: Conditions, memory: Memory | None, steps: int) -> Tensor:
    """One frame from noise (b, 1, C, H, W). The memory is read by every call and kept by none."""
    levels = sampler_levels(steps)
    x = noise
    for level, next_level in zip(levels, levels[1:], strict=False):
        at = x.new_full(x.shape[:2], level)
        prediction, _ = model(x, at, condition, memory)
        clean = to_clean(model.config.prediction, prediction, x, at).clamp(-1, 1)
        x = ddim_step(clean, x, at, x.new_full(x.shape[:2], next_level))
    return x.clamp(-1, 1)


@torch.no_grad()
def rollout(
    model: WorldModel,
    conditions: Conditions,
    frames: int,
    memory: Memory | None,
    sampler: SamplerConfig,
    generators: Sequence[torch.Generator],
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Memory]:
    """Generate `frames` frames, each committed to the memory once, when it is final: constant cost per frame.

    Args:
        conditions: of the frames to generate.
        memory: from `prefill`; None generates with nothing remembered.
        generators: one per stream, so that a stream's frames do not depend on who shares its batch.
        progress: called with the number of frames done.

    Returns:
        Frames (b, frames, C, H, W) in [-1, 1] and the memory after them.
    """
    config = model.config
    device = next(model.parameters()).device
    shape = (config.channels, config.height, config.width)

    def draw() -> Tensor:
        return torch.stack([torch.randn(1, *shape, generator=g) for g in generators]).to(device)

    made = []
    for t in range(frames):
        condition = conditions.frames(t, t + 1)
        frame = denoise_frame(model, draw(), condition, memory, sampler.steps)
        level = frame.new_full(frame.shape[:2], sampler.context_noise)
        _, memory = model(add_noise(frame, draw(), level), level, condition, memory)
        made.append(frame)
        if progress is not None:
            progress(t + 1)
    assert memory is not None
    return torch.cat(made, 1), memory
