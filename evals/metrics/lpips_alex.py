"""How far apart two frames look to AlexNet, from 0, lower is better (models/perceptual/lpips.py).

It and lpips_vgg are two measures: figures of one say nothing about the other.
"""

from __future__ import annotations

from longtake.evals.lpips import lpips_metric

METRIC = lpips_metric("lpips_alex", "LPIPS (AlexNet)", rank=2, smallest=31)
