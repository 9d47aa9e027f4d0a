"""Permutations of an epoch that are never written down, so that a million long episodes take no memory.

`shuffled` mixes everything with everything. `locally_shuffled` keeps what lies together in the storage together in
time: units come from a few groups of neighbours at once, so blocks that were fetched serve many clips before they go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.mixture import Ints

Hashes = NDArray[np.uint64]
ROUNDS = 6  # of a shuffle


@dataclass(frozen=True)
class Locality:
    """Groups of so many neighbouring episodes, of which so many are open at a time."""

    episodes: int
    groups: int


def shuffled(place: Ints, size: int, keys: Hashes) -> Ints:
    """Where these places of range(size) lie in a permutation of it that `keys` choose.

    A Feistel network on the smallest rectangle that holds them, walked on from where it leaves the range.
    """
    width = math.isqrt(max(size, 1) - 1) + 1
    height = -(-size // width)
    moved, outside = place.copy(), np.ones(len(place), bool)
    while outside.any():
        row, column = np.divmod(moved[outside], width)
        for first, second in keys.reshape(-1, 2):
            row = (row + (hashed(column, first) % np.uint64(height)).astype(np.int64)) % height
            column = (column + (hashed(row, second) % np.uint64(width)).astype(np.int64)) % width
        moved[outside] = row * width + column
        outside = moved >= size
    return moved


def locally_shuffled(place: Ints, size: int, group: int, together: int, keys: Hashes) -> Ints:
    """As `shuffled`, but of groups of `group` neighbours, which come in any order, `together` mixed at a time."""
    window = group * together
    windows = -(-size // window)
    moved, outside = place.copy(), np.ones(len(place), bool)
    while outside.any():
        which, within = np.divmod(moved[outside], window)
        # Every window is turned by an amount of its own, before and after one shuffle that serves all.
        turned = (within + (hashed(which, keys[0]) % np.uint64(window)).astype(np.int64)) % window
        mixed = (
            shuffled(turned, window, keys) + (hashed(which, keys[1]) % np.uint64(window)).astype(np.int64)
        ) % window
        slot, offset = np.divmod(mixed, group)
        moved[outside] = shuffled(which * together + slot, windows * together, keys) * group + offset
        outside = moved >= size
    return moved


def hashed(values: Ints, key: np.uint64) -> Hashes:
    """SplitMix64 of values under a key."""
    mixed = values.astype(np.uint64) ^ key
    mixed = (mixed + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
