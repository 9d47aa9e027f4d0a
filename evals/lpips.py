"""LPIPS as a metric of clips: the two nets of the field, each a metric of its own."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.metric import Clips, FrameMetric, Values

if TYPE_CHECKING:
    from longtake.models.perceptual.lpips import Lpips, NetName

BATCH = 32  # images that go through a net at once


def lpips_metric(name: NetName, title: str, rank: int, smallest: int) -> FrameMetric:
    """LPIPS by one net, which sees frames of so many pixels a side and larger ones."""
    explained = "LPIPS: distance of what a trained network sees in two frames, 0 for the same."
    measure = partial(lpips, name)
    return FrameMetric(title, "lower", 3, measure, rank=rank, explained=explained, weights=name, smallest=smallest)


def lpips(name: NetName, truth: Clips, generated: Clips) -> Values:
    """LPIPS of frames by one net, a batch at a time.

    Raises:
        MissingWeights: those of the net are not installed.
        ValueError: frames smaller than the net can see.
    """
    import torch

    from longtake.models.tokenizer import PIXELS

    distances = []
    frames = [clips.reshape(-1, *clips.shape[2:]) for clips in (truth, generated)]
    with torch.no_grad():
        for first in range(0, len(frames[0]), BATCH):
            batch = [torch.from_numpy(part[None, first : first + BATCH]) for part in frames]
            distances.append(_net(name)(*(PIXELS.encode(part)[0] for part in batch)).double().numpy())
    return np.concatenate(distances).reshape(generated.shape[:2])


@lru_cache
def _net(name: NetName) -> Lpips:
    from longtake.models.perceptual.lpips import Lpips

    return Lpips(name).eval()
