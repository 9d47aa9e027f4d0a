"""Frechet video distance of whole clips: how far features of made ones are from those of real ones, as two Gaussians.

Unterthiner et al., "Towards Accurate Generative Models of Video", 2018. Lower is better, from 0. Features: the logits
of I3D on clips of frames resized to 224x224 (bilinear, half-pixel centres, no smoothing). A distance between two sets
and not a mean over clips, so it comes with n, the clips in each: it falls as n grows, and figures of unlike n are not
comparable. With n <= 400 the 400x400 covariances lack full rank; the distance is defined all the same.

Letters: n clips, t frames, H and W pixels, F features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.metric import Clips, Features, SetMetric

if TYPE_CHECKING:
    from longtake.models.perceptual.i3d import I3d


def clip_features(frames: Clips) -> Features:
    """Features (n, F) of clips (n, t, H, W, 3), one after another: a clip at 224x224 is large.

    Raises:
        MissingWeights: those of I3D are not installed.
        ValueError: clips of fewer than 9 frames.
    """
    import torch
    import torch.nn.functional as F

    from longtake.models.perceptual.i3d import SIDE
    from longtake.models.tokenizer import PIXELS

    features = []
    with torch.no_grad():
        for clip in frames:
            images = PIXELS.encode(torch.from_numpy(clip)[None])[0]  # t C H W
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            features.append(_net()(images.movedim(0, 1)[None])[0].double().numpy())
    return np.stack(features)


def frechet_distance(real: Features, generated: Features) -> float:
    """Distance of the Gaussians fitted to two sets of features (n, F) and (m, F), in float64.

    The trace of the root of a product of two covariances is a sum of singular values of the centred features, which
    needs no matrix root and loses nothing where the covariances lack full rank.

    Raises:
        ValueError: fewer than two clips in a set: there is no covariance.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"fvd: {len(real)} real and {len(generated)} made clips; at least two of each are needed")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    apart = real.mean(0) - generated.mean(0)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (real, generated))
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = (apart**2).sum() + (a**2).sum() + (b**2).sum() - 2 * shared
    return float(max(distance, 0.0))


@lru_cache(maxsize=1)
def _net() -> I3d:
    from longtake.models.perceptual.i3d import I3d

    return I3d().eval()


METRIC = SetMetric(
    "FVD",
    "lower",
    1,
    clip_features,
    frechet_distance,
    folder="features",
    rank=8,
    explained="FVD: Fréchet video distance, between all clips made and all true ones.",
    weights="i3d",
    fewest_frames=9,  # of I3D, as the next one: a test compares them with the net's own
    full_rank=401,
)
