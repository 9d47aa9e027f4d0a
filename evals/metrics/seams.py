"""Jumps where spatial blocks meet against the truth's, dB, best at 0: above, blocks do not hang together.

Mean squared jump across every 8th row and column of pixels, where the smallest spatial blocks of the shipped models
meet (a token is 8 pixels, or a multiple), over that everywhere else, against the same of the truth.
"""

from __future__ import annotations

import numpy as np

from longtake.evals.metric import Frame, FrameMetric, each_frame
from longtake.evals.metrics.motion import ROUNDED

BORDER = 8  # pixels from one border of blocks to the next


def seams(truth: Frame, generated: Frame) -> float:
    """Jumps of a frame (H, W, 3) across the borders of blocks against those elsewhere, and against the truth's, in dB.

    Raises:
        ValueError: a frame without borders.
    """
    if min(generated.shape[:2]) <= BORDER:
        height, width = generated.shape[:2]
        raise ValueError(f"seams: frames are {height}x{width}, without a border every {BORDER} pixels")
    return _jumps(generated) - _jumps(truth)


def _jumps(frame: Frame) -> float:
    """Mean squared jumps at borders over those elsewhere, in dB."""
    at, off = [], []
    for axis in (0, 1):
        jumps = (np.diff(frame.astype(np.float64), axis=axis) ** 2).mean((1 - axis, 2))
        border = np.arange(1, len(jumps) + 1) % BORDER == 0
        at.append(jumps[border])
        off.append(jumps[~border])
    return float(10 * np.log10((np.concatenate(at).mean() + ROUNDED) / (np.concatenate(off).mean() + ROUNDED)))


METRIC = FrameMetric("Seams (dB)", "zero", 2, each_frame(seams), rank=7, smallest=BORDER + 1)
