"""Structural similarity, at most 1, higher is better.

Gaussian window 11, sigma 1.5 (Wang et al., 2004), the form the field publishes.
"""

from __future__ import annotations

from longtake.evals.metric import Frame, FrameMetric, each_frame

WINDOW = 11  # pixels a side of the Gaussian: 3.5 sigma each way


def ssim(truth: Frame, generated: Frame) -> float:
    """SSIM of one frame (H, W, 3)."""
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        truth,
        generated,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


METRIC = FrameMetric(
    "SSIM",
    "higher",
    3,
    each_frame(ssim),
    rank=1,
    explained="SSIM: structural similarity, 1 for the same frame.",
    smallest=WINDOW,
)
