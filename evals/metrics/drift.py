"""How far the colours have gone from the truth's, grey levels, from 0, lower is better.

The means and spreads of the colours of a frame, root mean square: a long generation that fades, darkens or burns out
has it.
"""

from __future__ import annotations

import numpy as np

from longtake.evals.metric import Frame, FrameMetric, each_frame


def drift(truth: Frame, generated: Frame) -> float:
    """Distance of the colours' means and spreads of a frame (H, W, 3) to the truth's, in grey levels."""
    apart = [statistic(generated, axis=(0, 1)) - statistic(truth, axis=(0, 1)) for statistic in (np.mean, np.std)]
    return float(np.sqrt(np.mean(np.square(apart).sum(0))))


METRIC = FrameMetric("Drift (grey levels)", "lower", 1, each_frame(drift), rank=5)
