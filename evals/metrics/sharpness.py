"""Detail against the truth's, dB, best at 0: below is blurrier than the truth, which PSNR forgives; above is noisier.

Variance of the Laplacian (Pech-Pacheco et al., 2000) of the grey frame over that of the truth.
"""

from __future__ import annotations

import numpy as np

from longtake.evals.metric import Frame, FrameMetric, each_frame

ROUNDING = 20 / 12
"""Variance of the Laplacian that rounding to whole grey levels makes by itself: 1/12 times its squared weights."""


def sharpness(truth: Frame, generated: Frame) -> float:
    """Sharpness of a frame (H, W, 3) against the truth's, in dB; what rounding makes counts for both."""
    return float(10 * np.log10((_detail(generated) + ROUNDING) / (_detail(truth) + ROUNDING)))


def _detail(frame: Frame) -> float:
    """Variance of the Laplacian of the grey frame, in grey levels squared."""
    from scipy.ndimage import laplace
    from skimage.color import rgb2gray

    return float(laplace(rgb2gray(frame) * 255).var())


METRIC = FrameMetric(
    "Sharpness (dB)",
    "zero",
    2,
    each_frame(sharpness),
    rank=4,
    explained="Sharpness: how much more detail than the truth has; below 0 is blurred.",
)
