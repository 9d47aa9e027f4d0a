"""From a plan's clips to arrays: what is read, decoded, replaced."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.dataset import CorruptData
from longtake.datasets.episode import LABEL
from longtake.datasets.mixture import Data, Ints
from longtake.motion import POSE_WIDTHS, follows, leading_actions, relative_pose
from longtake.streaming.plan import GlobalBatch

log = logging.getLogger(__name__)

Columns = dict[str, NDArray[Any]]
"""Clips on their way through Ray Data, by the names of ClipBatch's fields."""
Replace = Callable[[int, int, int], tuple[int, int]]

ATTEMPTS = 100  # clips tried in place of one that cannot be read
READERS = 16  # clips that are read from an object storage at the same time
DECODERS = 8  # clips that are decoded at the same time, where there are as many CPUs


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """A rank's B clips of one step, T frames each, as arrays.

    frames: uint8 (B, T, H, W, 3), or latents as the dataset keeps them. actions: float32 (B, T, stride x A), as
    `motion.leading_actions`; led: bool (B, T), as `motion.follows`. pose: float32 (B, T, P), as `motion.relative_pose`,
    where there is one. labels: (B, T, ...) by name, those that were asked for. episode, start,
    slot: int64 (B,), where each clip is from, and its place in the whole batch of the step. replaced: int64 (B,), clips
    that could not be read and were tried before it. weight: this share of the whole batch. bytes_read: what was read of
    the storage meanwhile.
    """

    frames: NDArray[Any]
    actions: NDArray[np.float32]
    led: NDArray[np.bool_]
    pose: NDArray[np.float32] | None
    labels: dict[str, NDArray[Any]]
    episode: Ints
    start: Ints
    slot: Ints
    replaced: Ints
    weight: float
    bytes_read: int

    @classmethod
    def of(cls, columns: Columns) -> ClipBatch:
        """The clips of one step."""
        labels = {name.removeprefix(LABEL): array for name, array in columns.items() if name.startswith(LABEL)}
        return cls(
            frames=columns["frames"],
            actions=columns["actions"],
            led=columns["led"],
            pose=columns.get("pose"),
            labels=labels,
            episode=columns["episode"],
            start=columns["start"],
            slot=columns["slot"],
            replaced=columns["replaced"],
            weight=float(columns["weight"][0]),
            bytes_read=int(columns["bytes_read"][0]),
        )


def load_clips(
    dataset: Data, batch: GlobalBatch, replace: Replace | None = None, labels: Sequence[str] = ()
) -> ClipBatch:
    """Read the clips of a batch, with these labels.

    `replace(step, slot, attempt)` names the clip to take for a corrupt one; without it CorruptData is
    raised.
    """
    before = dataset.bytes_read
    share = ClipReader(dataset, batch, replace, of_step(empty_columns(dataset, batch, 1, labels), 0))
    places = range(len(batch.slot))
    if dataset.store.is_folder:
        for place in places:
            share.load(place)
    else:  # each waits for an answer, most of the time
        with clip_threads(READERS) as readers:
            list(readers.map(share.load, places))
    return ClipBatch.of({**share.columns, "bytes_read": np.array([dataset.bytes_read - before])})


def clip_threads(number: int) -> ThreadPoolExecutor:
    """They read and decode clips: both leave the interpreter's lock to others most of the time."""
    return ThreadPoolExecutor(number, thread_name_prefix="clips")


class ClipReader:
    """The clips of a batch, each read into its place."""

    def __init__(self, dataset: Data, batch: GlobalBatch, replace: Replace | None, columns: Columns) -> None:
        self._dataset, self._batch, self._replace = dataset, batch, replace
        self.columns = columns

    def load(self, place: int) -> None:
        """One clip, or the first readable one of those that replace it."""
        batch, clip = self._batch, {name: array[place] for name, array in self.columns.items() if name != "weight"}
        episode, start, slot = (int(array[place]) for array in (batch.episode, batch.start, batch.slot))
        for attempt in itertools.count():
            try:
                self._fill(clip, episode, start, batch.order[place])
            except CorruptData as error:
                if self._replace is None or attempt >= ATTEMPTS:
                    raise
                log.warning("step %d, clip %d replaced: %s", batch.step, slot, error)
                episode, start = self._replace(batch.step, slot, attempt)
            else:
                for name, number in (("episode", episode), ("start", start), ("slot", slot), ("replaced", attempt)):
                    self.columns[name][place] = number
                return

    def _fill(self, clip: Columns, episode: int, start: int, order: Ints) -> None:
        stride, seen = self._batch.stride, int(order.max()) + 1
        visits = order[seen:]
        into = clip["frames"][:seen] if stride == 1 else None
        labels = {name: name.removeprefix(LABEL) for name in clip if name.startswith(LABEL)}
        source = self._dataset.read(episode, start, start + seen * stride, labels=set(labels.values()), into=into)
        if into is None:
            clip["frames"][:seen] = source.frames[::stride]
        if source.pose is not None:
            clip["pose"][:seen] = relative_pose(source.pose[::stride], self._dataset.pose_kind)
        for name, label in labels.items():
            clip[name][:seen] = source.labels[label][::stride]
        for name in clip.keys() & {"frames", "pose", *labels}:
            clip[name][seen:] = clip[name][visits]
        clip["actions"][...] = leading_actions(self._dataset.action_vectors(source.actions), order, stride)
        clip["led"][...] = follows(order)


def empty_columns(dataset: Data, batch: GlobalBatch, steps: int, labels: Sequence[str]) -> Columns:
    """Room for the clips of so many batches like this one, a row for each."""
    clips, frames = len(batch.slot), batch.frames
    columns: Columns = {
        "frames": np.empty((steps, clips, frames, *dataset.frame_shape), dataset.frame_dtype),
        "actions": np.empty((steps, clips, frames, batch.stride * dataset.action_dim), np.float32),
        "led": np.empty((steps, clips, frames), bool),
    }
    if dataset.has_pose:
        columns["pose"] = np.empty((steps, clips, frames, POSE_WIDTHS[dataset.pose_kind]), np.float32)
    for label in labels:
        shape, dtype = dataset.label_kind(label)
        columns[LABEL + label] = np.empty((steps, clips, frames, *shape), dtype)
    numbers = {name: np.empty((steps, clips), np.int64) for name in ("episode", "start", "slot", "replaced")}
    return {**columns, **numbers, "weight": np.full((steps, 1), clips / batch.size)}


def of_step(rows: Columns, row: int) -> Columns:
    """One row of several steps' columns."""
    return {name: array[row] for name, array in rows.items()}
