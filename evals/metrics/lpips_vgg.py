"""How far apart two frames look to VGG16, from 0, lower is better (models/perceptual/lpips.py).

It and lpips_alex are two measures: figures of one say nothing about the other.
"""

from __future__ import annotations

from longtake.evals.lpips import lpips_metric

METRIC = lpips_metric("lpips_vgg", "LPIPS (VGG16)", rank=3, smallest=16)
