"""Frame metrics on uint8 frames, by scikit-image.

psnr: peak signal-to-noise ratio, dB, higher is better, over all pixels and channels of one frame; identical frames
count as 100 dB, so that means stay finite.
ssim: structural similarity, at most 1, higher is better; Gaussian window 11, sigma 1.5 (Wang et al., 2004), the
form the field publishes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
IDENTICAL_PSNR = 100.0


def psnr(truth: Frame, made: Frame) -> float:
    """PSNR of one frame (H, W, 3), in dB."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(truth, made):
        return IDENTICAL_PSNR
    return float(peak_signal_noise_ratio(truth, made, data_range=255))


def ssim(truth: Frame, made: Frame) -> float:
    """SSIM of one frame (H, W, 3)."""
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        truth,
        made,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


METRICS: dict[str, Callable[[Frame, Frame], float]] = {"psnr": psnr, "ssim": ssim}
