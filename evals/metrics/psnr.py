"""Peak signal-to-noise ratio, dB, higher is better, over all pixels and channels of one frame.

Identical frames count as 100 dB, so that means stay finite.
"""

from __future__ import annotations

import numpy as np

from longtake.evals.metric import Frame, FrameMetric, each_frame

IDENTICAL_PSNR = 100.0


def psnr(truth: Frame, generated: Frame) -> float:
    """PSNR of one frame (H, W, 3), in dB."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(truth, generated):
        return IDENTICAL_PSNR
    return float(peak_signal_noise_ratio(truth, generated, data_range=255))


METRIC = FrameMetric(
    "PSNR (dB)",
    "higher",
    2,
    each_frame(psnr),
    rank=0,
    explained="PSNR: peak signal-to-noise ratio of the pixels; 3 dB more is half the squared error.",
)
