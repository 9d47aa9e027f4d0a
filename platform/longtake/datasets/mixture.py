"""Several datasets as one: episodes numbered through, each dataset with a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.dataset import Dataset, Manifest
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Array
from longtake.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

FINEST = 10_000  # weights are held to such fractions of the largest one


def open_data(store: Store, chosen: str | Mapping[str, float]) -> Data:
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
    return Mixture(opened, tuple(chosen.values()))


class Mixture:
    """Datasets whose frames and actions are of one kind; a pose there is only where all of them have one.

    weights: how often each is drawn from, beside the others. Raises UserError for datasets of different kinds.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float]) -> None:
        problems = [line for other in datasets[1:] for line in _differing(datasets[0], other)]
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
        self, episode: int, start: int = 0, stop: int | None = None, *, labels: bool = False, into: Array | None = None
    ) -> Episode:
        """Frames [start, stop) of an episode, see `Dataset.read`."""
        part = int(self.part_of(np.array([episode]))[0])
        own = episode - (int(self._ends[part - 1]) if part else 0)
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


def _differing(one: Dataset, other: Dataset) -> list[str]:
    """Why two datasets cannot be mixed, in words."""
    properties: dict[str, list[object]] = {
        "frames": [(data.frame_shape, data.frame_dtype) for data in (one, other)],
        "numbers in an action": [data.action_dim for data in (one, other)],
        "frames per second": [data.manifest.fps for data in (one, other)],
        "tokenizer": [data.manifest.latents and data.manifest.latents.weights for data in (one, other)],
        "discrete actions": [data.manifest.action_classes for data in (one, other)],
    }
    if one.has_pose and other.has_pose:
        properties["pose"] = [data.manifest.pose for data in (one, other)]
    return [
        f"{other.name} cannot be mixed with {one.name}: {what} {theirs} instead of {here}"
        for what, (here, theirs) in properties.items()
        if here != theirs
    ]


Ints = NDArray[np.int64]
