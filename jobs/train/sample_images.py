"""Pictures of what a model in training makes: frames of a held-out clip above, its own below, in the run's folder.

    runs/ID/samples/step-000100.png

Always the same clip and noise, so that pictures of one run can be laid side by side.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtake.jobs.train.loss import seeded
from longtake.models.rollout import prefill, rollout

if TYPE_CHECKING:
    from longtake.jobs.train.config import SamplesConfig
    from longtake.jobs.train.loss import Batch
    from longtake.models.tokenizer import Tokenizer
    from longtake.models.world_model import WorldModel
    from longtake.training.context import Context

GAP = 2
"""Pixels between pictures."""


def make_drawing(
    context: Context, config: SamplesConfig, batch: Batch, model: WorldModel, tokenizer: Tokenizer
) -> Callable[[int], None]:
    """A function that draws the rollout of the first clip of a batch at a step; every rank calls it.

    The first half of the clip is context, the model makes the next frames.
    """
    chunk = model.config.chunk or 1
    context_frames = batch.frames.shape[1] // 2 // chunk * chunk
    made_frames = min(config.frames, batch.frames.shape[1] - context_frames) // chunk * chunk
    one = batch.clips(0, 1)
    seen, ahead = one.between(0, context_frames), one.between(context_frames, context_frames + made_frames)

    @torch.no_grad()
    def save_samples(step: int) -> None:
        memory = prefill(model, seen.frames, seen.conditions)
        generated, _ = rollout(model, ahead.conditions, made_frames, memory, config.sampler, [seeded(0, 0, 0)])
        if context.rank == 0:
            rows = [tokenizer.decode(frames)[0].cpu().numpy() for frames in (ahead.frames, generated)]
            context.store.write_bytes(f"runs/{context.run_id}/samples/step-{step:06d}.png", picture(rows))

    return save_samples


def picture(rows: list[NDArray[np.uint8]]) -> bytes:
    """Rows of frames (t, H, W, 3) as one PNG, white between them."""
    from matplotlib.image import imsave

    lines: list[NDArray[Any]] = []
    for row in rows:
        padded = np.pad(row, ((0, 0), (GAP, 0), (GAP, 0), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    file = io.BytesIO()
    imsave(file, np.concatenate(lines), format="png")
    return file.getvalue()
