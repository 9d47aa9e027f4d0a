"""Frames out, one after another: prefill a memory from the context, then denoise, show and remember, frame by frame.

A model whose attention works in chunks makes a chunk at a time. Letters: b streams, t frames, C channels, H·W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.diffusion import add_noise, ddim_step, sampler_levels, to_clean
from longtake.models.memory import Memory
from longtake.models.world_model import WorldModel


class LongContextWarning(UserWarning):
    """A stream is longer than the clips that the model was trained on: what comes out is extrapolation."""


@torch.no_grad()
def prefill(
    model: WorldModel,
    frames: Tensor,
    conditions: Conditions,
    memory: Memory | None = None,
    temporal_block: int = 64,
) -> Memory:
    """Show clean frames (b, t, C, H, W) to the model, `temporal_block` at a time, and return what it carries.

    Raises:
        ValueError: no frames, frames that are not finite, or a model that is not causal.
    """
    _require_causal(model)
    if not frames.isfinite().all():
        bad = (~frames.isfinite()).flatten(2).any(-1).nonzero()[0].tolist()
        raise ValueError(f"frames: not finite (nan or inf), first in clip {bad[0]}, frame {bad[1]}")
    total = frames.shape[1]
    _warn_if_longer(model, memory.frames if memory is not None else 0, total)
    chunk = model.config.chunk or 1
    block = max(chunk, temporal_block // chunk * chunk)
    for start in range(0, total, block):
        stop = min(start + block, total)
        piece = frames[:, start:stop]
        level = piece.new_zeros(piece.shape[:2])
        _, memory = model(piece, level, conditions.frames(start, stop), memory)
    if memory is None:
        raise ValueError("frames: the context is empty; give at least one frame, or start with memory=None")
    return memory


@torch.no_grad()
def denoise(
    model: WorldModel, noise: Tensor, conditions: Conditions, memory: Memory | None, sampler: SamplerConfig
) -> Tensor:
    """Frames from noise (b, t, C, H, W), together. The memory is read by every call and kept by none.

    With guidance above 1 each call is made twice, told and not told, and the difference is scaled up (classifier-free
    guidance; Ho and Salimans, 2022).
    """
    levels = sampler_levels(sampler.steps)
    x = noise
    untold = conditions.drop(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
    for level, next_level in zip(levels, levels[1:], strict=False):
        at = x.new_full(x.shape[:2], level)
        prediction, _ = model(x, at, conditions, memory)
        if sampler.guidance != 1:
            without, _ = model(x, at, untold, memory)
            prediction = without + sampler.guidance * (prediction - without)
        clean = _bounded(model, to_clean(model.config.prediction, prediction, x, at))
        x = ddim_step(clean, x, at, x.new_full(x.shape[:2], next_level))
    return _bounded(model, x)


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
        memory: from `prefill`, or from an earlier rollout (`Memory.from_dict` of a saved one); None generates with
            nothing remembered.
        generators: one per stream, so that a stream's frames do not depend on who shares its batch.
        progress: called with the number of frames done.

    Returns:
        Frames (b, frames, C, H, W), within the model's `clip`, and the memory after them.

    Raises:
        ValueError: no frames asked for, or a model that is not causal.
    """
    _require_causal(model)
    _warn_if_longer(model, memory.frames if memory is not None else 0, frames)
    config = model.config
    device = next(model.parameters()).device
    shape = (config.channels, config.height, config.width)
    chunk = config.chunk or 1
    generated = []
    for start in range(0, frames, chunk):
        stop = min(start + chunk, frames)

        def sample_noise(count: int = stop - start) -> Tensor:
            return torch.stack([torch.randn(count, *shape, generator=g, device=g.device) for g in generators]).to(
                device
            )

        condition = conditions.frames(start, stop)
        piece = denoise(model, sample_noise(), condition, memory, sampler)
        level = piece.new_full(piece.shape[:2], sampler.context_noise)
        _, memory = model(add_noise(piece, sample_noise(), level), level, condition, memory)
        generated.append(piece)
        if progress is not None:
            progress(stop)
    if memory is None:
        raise ValueError(f"frames: {frames}; ask for one at least")
    return torch.cat(generated, 1), memory


@torch.no_grad()
def fill_in(
    model: WorldModel,
    frames: Tensor,
    known: Tensor,
    conditions: Conditions,
    sampler: SamplerConfig,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Frames (b, t, C, H, W) with those that are not `known` (b, t) generated, all together: the task of a model that
    is not causal. The known ones are shown clean in every call and come back as they are."""
    draws = [torch.randn(frames.shape[1:], generator=g, device=g.device) for g in generators]
    x = torch.stack(draws).to(frames.device)
    keep = known[..., None, None, None]
    levels = sampler_levels(sampler.steps)
    for level, next_level in zip(levels, levels[1:], strict=False):
        at = x.new_full(x.shape[:2], level)
        shown = torch.where(keep, frames, x)
        prediction, _ = model(shown, at.masked_fill(known, 0.0), conditions)
        clean = _bounded(model, to_clean(model.config.prediction, prediction, x, at))
        x = ddim_step(clean, x, at, x.new_full(x.shape[:2], next_level))
    return torch.where(keep, frames, _bounded(model, x))


def _bounded(model: WorldModel, clean: Tensor) -> Tensor:
    """Clean values within what the model's frames can be."""
    bound = model.config.clip
    return clean if bound is None else clean.clamp(-bound, bound)


def _require_causal(model: WorldModel) -> None:
    if not model.config.causal:
        raise ValueError("model: not causal (causal: false), so it cannot generate frame by frame; use fill_in")


def _warn_if_longer(model: WorldModel, seen: int, more: int) -> None:
    """Warn where a stream becomes longer than the clips of the training: once, with the frame that does it."""
    trained = model.trained_frames
    if trained is not None and seen <= trained < seen + more:
        warnings.warn(
            f"a stream of {seen + more} frames, but the model was trained on clips of {trained}: "
            "what it makes beyond them is extrapolation",
            LongContextWarning,
            stacklevel=3,
        )
