"""Orders in which a clip comes back to what it has shown: pure functions of a generator.

An order is indices into the frames seen. Every one but the way back is drawn, and no two clips need the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Order = Callable[[int, int, np.random.Generator], Ints]
"""(frames seen, frames asked, generator) → (asked,) indices into those seen."""

TURN = 0.25
"""Chance that a walk turns round at a frame."""


def way_back(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """The last frame first; on to the end again where more is asked."""
    return _bounced(np.arange(seen, seen + count), seen)


def runs(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """All frames in short runs, forwards or backwards, that come in any order; again in another where more is asked."""
    rounds = [_shuffled_runs(seen, rng) for _ in range(-(-count // seen))]
    return np.concatenate(rounds)[:count]


def loop(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """Round and round one stretch, in one direction."""
    length = int(rng.integers(2, seen + 1)) if seen > 1 else 1
    first, phase = int(rng.integers(seen - length + 1)), int(rng.integers(length))
    direction = 1 if rng.random() < 0.5 else -1
    return first + (phase + direction * np.arange(count)) % length


def walk(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """A step at a time from anywhere, with a turn now and then, and at either end."""
    steps = np.where(np.cumsum(rng.random(count) < TURN) % 2, -1, 1)
    return _bounced(int(rng.integers(2 * seen)) + np.cumsum(steps), seen)


def jumps(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """Any frame, each time anew."""
    return rng.integers(seen, size=count)


def shuffled(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """All frames in any order; again in another where more is asked."""
    return np.concatenate([rng.permutation(seen) for _ in range(-(-count // seen))])[:count]


REVISITS: tuple[Order, ...] = (shuffled, runs, loop, walk, jumps)
"""What a revisit is one of."""


def revisit(seen: int, count: int, rng: np.random.Generator) -> Ints:
    """Half of all shuffled, which ask every place, the rest as often each of the others."""
    first, *others = REVISITS
    return (first if rng.random() < 0.5 else others[int(rng.integers(len(others)))])(seen, count, rng)


def _bounced(places: Ints, seen: int) -> Ints:
    """Places on an endless walk to and fro over the frames seen: 0 .. seen - 1, seen - 1 .. 0, and so on."""
    phase = places % (2 * seen)
    return np.where(phase < seen, phase, 2 * seen - 1 - phase)


def _shuffled_runs(seen: int, rng: np.random.Generator) -> Ints:
    cuts = np.flatnonzero(rng.random(seen - 1) < rng.random()) + 1
    parts = np.split(np.arange(seen), cuts)
    return np.concatenate([parts[i][:: 1 if rng.random() < 0.5 else -1] for i in rng.permutation(len(parts))])
