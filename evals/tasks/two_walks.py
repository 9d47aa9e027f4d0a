"""Two walks: shown one walk through a world and asked another, what does one know of the places that the first passed?

The decisive form of spatial reasoning: nothing but the world is common to the walks, so no way back, no playback and no
continuity helps, and the truth of the second is what the simulator showed there. Shown: the first `context` frames of
one walk. Asked: the first `horizon` of another walk in the same world, given the pose of every frame; no action leads
from one into the other. Strata and distances are reasoning's: `seen` where some frame of the first walk was taken
within `seen_within` of the asked pose, at the distance of the newest such frame, else `unseen`. It needs a dataset
with two walks in a world (collect with `walks: 2`: doom-maze-walks, texture-torus-walks), one clip per world.

How to read it: a memory knows seen places better than unseen ones (2 dB is much), and better than the same model that
was shown a walk in another world (`stranger`), which takes away what all such worlds have in common; both gaps are
paired over worlds:
longtake results scores --where "task == 'two_walks'" --by system
longtake.compare(store, "MODEL", "MODEL/stranger", where="task == 'two_walks' and stratum == 'seen'")
Floors, oracle and other controls: as for retrieval; the oracle's nearest frame is seldom the truth itself. Range and
direction: those of the metric. Fewest worlds for a useful interval: about 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longtake.evals.task import Indices, ReportPlace, Task
from longtake.evals.tasks.reasoning import Fields, places

if TYPE_CHECKING:
    from longtake.evals.protocol import Protocol


def walks(protocol: Protocol) -> tuple[int, int]:
    """Frames of the walk shown, and of the walk asked. One of the first is left out, so that the walks do not touch."""
    return protocol.context + 1, protocol.horizon


def frame_order(protocol: Protocol) -> tuple[Indices, Indices]:
    """The one walk, a gap, the other; the distance is to the last frame shown, where `places` knows no better."""
    shown, queries = np.arange(protocol.context), np.arange(protocol.horizon)
    return np.concatenate([shown, protocol.context + 1 + queries]), queries + 1


TASK = Task(
    frame_order,
    why_pose="places seen cannot be told from places not seen",
    walks=walks,
    fields=Fields,
    places=places,
    report=ReportPlace(rank=2),
)
