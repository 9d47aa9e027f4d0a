"""From what was recorded to what a model is told: units, scales and names, by the statistics of its training data.

A checkpoint carries the `Normalisation` that its model was trained with, so numbers in the units of the recording go
in wherever a model is used, by `longtake.models.conditions.from_recording`; `Affine.undo` is the way back. Works
without torch.

Letters: b clips, t frames, A numbers of an action, k actions that led to a frame (stride), S of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from longtake.motion import PLACE_WIDTHS

Floats = NDArray[np.float32]


class Affine(BaseModel):
    """Per column: (x - offset) / scale. A column that never changed has scale 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0)], ...]

    def apply(self, values: Floats) -> Floats:
        """Recorded numbers (..., k·A) in the model's scale, computed in double precision."""
        offset, scale = self._columns(values.shape[-1])
        return np.asarray((values - offset) / scale, np.float32)

    def undo(self, values: Floats) -> Floats:
        """The model's numbers (..., k·A) in the units of the recording."""
        offset, scale = self._columns(values.shape[-1])
        return np.asarray(values * scale + offset, np.float32)

    def _columns(self, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Offset and scale of every column, repeated for stacked actions. Raises ValueError for another width."""
        repeats, left = divmod(width, len(self.offset))
        if left or not repeats:
            raise ValueError(f"{width} columns, but the statistics are of {len(self.offset)}")
        return np.tile(self.offset, repeats), np.tile(self.scale, repeats)


class Normalisation(BaseModel):
    """How a model is told what was recorded; nothing is changed unless it says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    actions: Affine | None = None
    """Of continuous actions. The null action, where none led to a frame, is zeros in the model's scale: the mean."""
    state: Affine | None = None
    state_label: str | None = None
    """The dataset's label that is told as the state."""
    cell: Annotated[float, Field(gt=0)] = 1.0
    """Units of the recording that count as one cell, for places."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, in the order of the model's table, whose row 0 is for any other."""

    def task_rows(self, tasks: Sequence[str | None]) -> NDArray[np.int64]:
        """Rows of the model's table of tasks (b,): 0 for one that it does not know."""
        rows = {name: number for number, name in enumerate(self.tasks, start=1)}
        return np.array([rows.get(task or "", 0) for task in tasks], np.int64)

    def told_actions(self, actions: Floats, led: NDArray[np.bool_]) -> Floats:
        """Recorded actions (b, t, k·A) in the model's scale: zeros where none led to a frame, `led` (b, t)."""
        if self.actions is None:
            return actions
        return np.where(led[..., None], self.actions.apply(actions), np.float32(0))

    def told_state(self, state: Floats) -> Floats:
        """A recorded state (b, t, S) in the model's scale."""
        return state if self.state is None else self.state.apply(state)

    def in_cells(self, pose: Floats) -> Floats:
        """A relative pose (b, t, P) with its place in cells."""
        if self.cell == 1:
            return pose
        width = PLACE_WIDTHS[pose.shape[-1]]
        return np.concatenate([pose[..., :width] / np.float32(self.cell), pose[..., width:]], -1)
