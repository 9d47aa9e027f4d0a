"""Played worlds as a dataset like any other, marked as dreamt: no evaluation takes it for truth."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from longtake.datasets.dataset import DREAMT
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs.play.game import Recording

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset
    from longtake.storage.store import Store
    from longtake.worlds.remote import Service
    from longtake.worlds.source import WorldSource

FEWEST = 3
"""Episodes of a dataset: one for each split. Fewer recordings are cut into as many pieces."""


def save(recordings: Sequence[Recording], source: WorldSource | Service, store: Store) -> Dataset:
    """Write recordings as a dataset `dreamt-NAME-TIME`.

    Raises:
        UserError: too few frames for an episode in each split.
    """
    pieces = [piece for recording in recordings for piece in _cut(recording, len(recordings))]
    if len(pieces) < FEWEST:
        raise UserError(f"save: {sum(len(r.frames) for r in recordings)} frames are recorded; {2 * FEWEST} are needed")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    about, origin = source.about, {"run": source.name, "step": source.step}
    writer = DatasetWriter(
        store,
        f"dreamt-{about.name}-{now}",
        recipe={DREAMT: origin, "of": about.dataset, "at": now},
        fps=about.fps,
        action_space={control.name: " ".join(control.keys) for control in about.controls.controls},
        pose=about.pose,
        controls=about.controls,
    )
    writer.claim()
    writer.write_shard(0, [_episode(piece, DREAMT, origin, about.pose is not None) for piece in pieces])
    return writer.finalize(1)


def _cut(recording: Recording, recordings: int) -> list[Recording]:
    """A recording as it is, or in pieces of two frames or more where there are few."""
    count = 1 if recordings >= FEWEST else min(FEWEST, len(recording.frames) // 2)
    parts = [np.array_split(np.arange(len(recording.frames)), count)] if count else [[]]
    return [
        Recording(*([values[i] for i in part] for values in (recording.frames, recording.actions, recording.poses)))
        for part in parts[0]
    ]


def _episode(piece: Recording, mark: str, origin: Mapping[str, object], pose: bool) -> Episode:
    actions = np.stack(piece.actions)
    actions[0] = 0  # the first action of an episode is the null action
    return Episode(
        np.stack(piece.frames), actions, np.stack(piece.poses).astype(np.float32) if pose else None, {mark: origin}
    )
