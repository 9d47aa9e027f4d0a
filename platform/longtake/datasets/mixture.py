"""Several datasets as one: episodes numbered through, each dataset with a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.dataset import Dataset, Manifest
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Array
from longtake.datasets.statistics import Statistics, pooled
from longtake.errors import UserError
from longtake.motion import PoseKind

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

FINEST = 10_000  # weights are held to such fractions of the largest one


Unlike = Literal["fps", "actions", "pose"]
"""What datasets of a mixture may have otherwise where that is declared: frames per second, and with them how far apart
actions are; what the numbers of actions mean; in which units a pose is."""


def open_data(store: Store, chosen: str | Mapping[str, float], unlike: Sequence[Unlike] = ()) -> Data:
    """A dataset by its name, or a mixture of some by their weights. Raises UserError with every problem."""
    if isinstance(chosen, str):
        return store.dataset(chosen)
    opened: list[Dataset] = []
    problems: list[str] = []
    for name in chosen:
        try:
            opened.append(store.dataset(name))
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return Mixture(opened, tuple(chosen.values()), unlike)


class Mixture:
    """Datasets whose frames and actions are of one kind; a pose there is only where all of them have one.

    weights: how often each is drawn from, beside the others. unlike: what may differ. Raises UserError for datasets of
    different kinds.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], unlike: Sequence[Unlike] = ()) -> None:
        problems = [line for other in datasets[1:] for line in _differing(datasets[0], other, unlike)]
        if problems:
            raise UserError(*problems)
        self.datasets = list(datasets)
        self.weights = whole_weights(weights)
        self._ends = np.cumsum([one.manifest.episodes for one in datasets])

    @property
    def name(self) -> str:
        """The names of all."""
        return " + ".join(one.name for one in self.datasets)

    @property
    def store(self) -> Store:
        """Where they are."""
        return self.datasets[0].store

    @property
    def bytes_read(self) -> int:
        """Bytes that were asked of the storage through these objects."""
        return sum(store.bytes_read for store in {id(one.store): one.store for one in self.datasets}.values())

    @property
    def fingerprint(self) -> str:
        """Changes with any of theirs; weights are in the config of a run."""
        return hashlib.sha256(" ".join(one.fingerprint for one in self.datasets).encode()).hexdigest()[:16]

    @property
    def manifest(self) -> Manifest:
        """Of the first; the kinds of frames and actions are those of all."""
        return self.datasets[0].manifest

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(H, W, channels) of a frame."""
        return self.datasets[0].frame_shape

    @property
    def frame_dtype(self) -> str:
        """Of the frames, as NumPy writes it."""
        return self.datasets[0].frame_dtype

    @property
    def action_dim(self) -> int:
        """Numbers in an action as a model sees it."""
        return self.datasets[0].action_dim

    @property
    def has_pose(self) -> bool:
        """Whether all of them have a pose."""
        return all(one.has_pose for one in self.datasets)

    @property
    def pose_kind(self) -> PoseKind:
        """What the columns of their poses are."""
        return self.datasets[0].pose_kind

    @property
    def statistics(self) -> Statistics | None:
        """Of the frames of all of them, by how many each has; None where one does not know its own."""
        return pooled([one.statistics for one in self.datasets])

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the episodes of any of them are told to do."""
        return tuple(sorted({task for one in self.datasets for task in one.tasks}))

    def label_kind(self, label: str) -> tuple[tuple[int, ...], str]:
        """Shape per frame and dtype of a label of all. Raises UserError where one lacks it, or has another of it."""
        kinds = {one.name: one.label_kind(label) for one in self.datasets}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{dtype} {shape} in {name}" for name, (shape, dtype) in kinds.items())
            raise UserError(f"label {label} is not the same in all datasets: {listed}")
        return kinds[self.datasets[0].name]

    def fps_of(self, episode: int) -> float:
        """Frames per second of an episode."""
        part, own = self._own(episode)
        return self.datasets[part].fps_of(own)

    def task_of(self, episode: int) -> str | None:
        """What an episode is told to do, where it says so."""
        part, own = self._own(episode)
        return self.datasets[part].task_of(own)

    def _own(self, episode: int) -> tuple[int, int]:
        """The dataset of an episode, and its number there."""
        part = int(self.part_of(np.array([episode]))[0])
        return part, episode - (int(self._ends[part - 1]) if part else 0)

    def action_vectors(self, actions: Array) -> NDArray[np.float32]:
        """Actions as float32 (T, action_dim)."""
        return self.datasets[0].action_vectors(actions)

    def episodes(self, split: str | None = None) -> pd.DataFrame:
        """(episode, length) of a split of all datasets."""
        import pandas as pd

        parts = [one.episodes(split) for one in self.datasets]
        firsts = [0, *self._ends[:-1]]
        shifted = [rows.assign(episode=rows["episode"] + first) for rows, first in zip(parts, firsts, strict=True)]
        return pd.concat(shifted, ignore_index=True)

    def part_of(self, episodes: Ints) -> Ints:
        """Which dataset each of these episodes is of."""
        return np.searchsorted(self._ends, episodes, side="right").astype(np.int64)

    def read(
        self,
        episode: int,
        start: int = 0,
        stop: int | None = None,
        *,
        labels: bool | Collection[str] = False,
        into: Array | None = None,
    ) -> Episode:
        """Frames [start, stop) of an episode, see `Dataset.read`."""
        part, own = self._own(episode)
        piece = self.datasets[part].read(own, start, stop, labels=labels, into=into)
        return piece if self.has_pose else replace(piece, pose=None)


Data: TypeAlias = Dataset | Mixture
"""What clips are read from."""


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in these proportions. Raises UserError for one too small to tell from none."""
    top = max(weights)
    parts = [Fraction(weight / top).limit_denominator(FINEST) for weight in weights]
    if not all(parts):
        raise UserError(f"weights {list(weights)}: the smallest is less than 1/{FINEST} of the largest: leave it out")
    shared = np.lcm.reduce([part.denominator for part in parts], dtype=object)
    whole = [int(part * shared) for part in parts]
    divisor = int(np.gcd.reduce(whole))
    if sum(whole) // divisor > FINEST**2:
        raise UserError(f"weights {list(weights)}: no simple proportion, round them")
    return tuple(number // divisor for number in whole)


def _differing(one: Dataset, other: Dataset, unlike: Sequence[Unlike]) -> list[str]:
    """Why two datasets cannot be mixed, in words."""
    properties: dict[str, list[object]] = {
        "frames": [(data.frame_shape, data.frame_dtype) for data in (one, other)],
        "numbers in an action": [data.action_dim for data in (one, other)],
        "tokenizer": [data.manifest.latents and data.manifest.latents.weights for data in (one, other)],
        "discrete actions": [data.manifest.action_classes for data in (one, other)],
    }
    declared: dict[Unlike, list[object]] = {
        "fps": [data.manifest.fps for data in (one, other)],
        "actions": [data.manifest.action_space for data in (one, other)],
    }
    if one.has_pose and other.has_pose:
        properties["pose"] = [data.pose_kind for data in (one, other)]
        declared["pose"] = [data.manifest.pose for data in (one, other)]
    refused, both = f"{other.name} cannot be mixed with {one.name}:", properties.items()
    return [f"{refused} {what} {theirs} instead of {here}" for what, (here, theirs) in both if here != theirs] + [
        f"{refused} {what} {theirs} instead of {here}; if the model is to see both, declare it: data.unlike=[{what}]"
        for what, (here, theirs) in declared.items()
        if here != theirs and what not in unlike
    ]


Ints = NDArray[np.int64]
