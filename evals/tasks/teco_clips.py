"""TECO's FVD: of whole 300-frame clips, 36 frames shown; the made clip's first 36 frames are the real ones.

The other half of teco, which see: FVD is a distance between sets of clips (evals/metrics/fvd.py), here of 256, and
comparable at equal numbers of clips only.
"""

from __future__ import annotations

from longtake.evals.task import Task
from longtake.evals.tasks.teco import frame_order

TASK = Task(frame_order, compared_with="baselines")
