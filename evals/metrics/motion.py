"""Change from frame to frame against the truth's, dB, best at 0: far below a generation has frozen, above it flickers.

Mean squared change from the frame before over that of the truth (of a clip's first frame: to the next). Many
generations collapse by freezing.
"""

from __future__ import annotations

import numpy as np

from longtake.evals.metric import Clips, FrameMetric, Values

ROUNDED = 2 / 12
"""Mean squared difference that rounding to whole grey levels makes by itself."""


def motion(truth: Clips, generated: Clips) -> Values:
    """Change from frame to frame of clips (b, t, H, W, 3) against the truth's, in dB (b, t)."""
    return np.asarray(10 * np.log10((_change(generated) + ROUNDED) / (_change(truth) + ROUNDED)))


def _change(clips: Clips) -> Values:
    """Mean squared change from the frame before (b, t); of the first one to the next, of a single one none."""
    if clips.shape[1] < 2:
        return np.zeros(clips.shape[:2])
    squared = (np.diff(clips.astype(np.float64), axis=1) ** 2).mean((2, 3, 4))
    return np.concatenate([squared[:, :1], squared], 1)


METRIC = FrameMetric("Motion (dB)", "zero", 2, motion, rank=6)
