"""Cutting and shrinking pictures, the same bytes on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def square(frames: Frames) -> Frames:
    """The central square of pictures (..., H, W, 3)."""
    height, width = frames.shape[-3:-1]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return frames[..., top : top + edge, left : left + edge, :]


def shrink(frames: Frames, resolution: tuple[int, int]) -> Frames:
    """Area average of (..., H, W, 3) at `resolution`; integer weights, so nothing depends on rounding."""
    height, width = frames.shape[-3:-1]
    rows, columns = _overlap(height, resolution[0]), _overlap(width, resolution[1])
    out: Frames = np.empty((*frames.shape[:-3], *resolution, 3), np.uint8)
    flat, filled = frames.reshape(-1, height, width, 3), out.reshape(-1, *resolution, 3)
    area = height * width
    for picture, target in zip(flat, filled, strict=True):  # one by one: an episode of floats would be eight times it
        halfway = (rows @ picture.reshape(height, -1).astype(np.float64)).reshape(resolution[0], width, 3)
        target[:] = (2 * (columns @ halfway) + area) // (2 * area)
    return out


def _overlap(source: int, target: int) -> NDArray[np.float64]:
    """(target, source): how much of each source pixel lies in each target pixel, in 1/target pixels."""
    left, right = np.arange(target)[:, None] * float(source), np.arange(source)[None, :] * float(target)
    shared: NDArray[np.float64] = np.minimum(left + source, right + target) - np.maximum(left, right)
    return np.maximum(0.0, shared)
