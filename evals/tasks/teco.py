"""TECO: 300-frame clips of DMLab (64x64) or Minecraft (128x128), 144 frames shown, the 156 that follow judged.

Paper: Yan et al., "Temporally Consistent Transformers for Video Generation" (2023). SSIM (Gaussian window 11, sigma
1.5), PSNR, and LPIPS by AlexNet on inputs in [-1, 1], over 256 clips; the field's other papers also print LPIPS by VGG,
which is another measure. FVD is asked apart, of the same clips with 36 frames shown: teco_clips. Published, SSIM /
PSNR / LPIPS / FVD, as their papers or READMEs print them:
Minecraft: SCD-M 0.524 / 19.3 / 0.179 / 37.6, FAR-M-Long 0.448 / 16.9 / 0.251 / 39, TECO 0.381 / 15.4 / 0.340 / 116.
DMLab: FAR-B-Long 0.687 / 22.3 / 0.104 / 64.
The distance of generated frame j is j + 1, to the last frame shown. Controls are left out, as in the papers; floors are
not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.evals.task import Indices, Task
from longtake.evals.tasks import rollout

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol

FRAMES = 300


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """Straight on, to the end of a clip.

    Raises:
        ValueError: clips of another length.
    """
    if protocol.context + protocol.horizon != FRAMES:
        raise ValueError(
            f"horizon: context {protocol.context} and horizon {protocol.horizon} are not the {FRAMES} frames of TECO's "
            f"clips; set it to {FRAMES - protocol.context}"
        )
    return rollout.frame_order(protocol)


TASK = Task(frame_order, compared_with="baselines")
