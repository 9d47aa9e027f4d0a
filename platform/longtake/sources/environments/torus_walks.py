"""Walks over a plane: random, in loops, out and back, or with jumps to where one was. A torus folds them up.

A path is float64 (n, 3): x and y in whole pixels, not folded, and the heading in radians, anticlockwise from x. It is
made of pieces, each of which begins where the one before it ended; only a jump begins elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Path = NDArray[np.float64]
Walk = Literal["random", "loops", "returns", "jumps"]
WANDER = 0.35
"""Standard deviation, in radians a frame, of the heading's own random walk."""
LAPS = 2


def walk(kind: Walk, steps: int, speed: float, back: int, extent: int, rng: np.random.Generator) -> tuple[Path, Path]:
    """A path of `steps` frames, and where it jumped (steps,) bool.

    speed: pixels a frame. back: frames of a loop, of an excursion, or between two jumps. extent: pixels within which
    it begins.
    """
    begin = np.array([*rng.integers(0, extent, 2), rng.uniform(0, 2 * np.pi)])
    pieces, jumps, length = [begin[None]], [np.zeros(1, bool)], 1
    for piece, jumped in PIECES[kind](begin, speed, back, rng):
        pieces.append(piece)
        jumps.append(np.arange(len(piece)) < jumped)
        length += len(piece)
        if length >= steps:
            break
    return np.concatenate(pieces)[:steps], np.concatenate(jumps)[:steps]


def wander(begin: Path, frames: int, speed: float, rng: np.random.Generator) -> Path:
    """The next frames of a walk whose heading drifts."""
    return _along(begin, begin[2] + np.cumsum(rng.normal(0, WANDER, frames)), speed)


def circle(begin: Path, frames: int, speed: float, way: int) -> Path:
    """The next frames of a circle to the left (way 1) or right (-1), which ends where it began."""
    path = _along(begin, begin[2] + way * 2 * np.pi * np.arange(1, frames + 1) / frames, speed)
    path[-1] = begin  # sums of sines close up to rounding
    return path


def _along(begin: Path, heading: Path, speed: float) -> Path:
    """Steps of `speed` along headings (n,): the n positions after `begin`."""
    x, y = begin[0] + np.cumsum(speed * np.cos(heading)), begin[1] + np.cumsum(speed * np.sin(heading))
    return np.stack([np.rint(x), np.rint(y), heading], 1)


Pieces = Iterator[tuple[Path, int]]
"""Pieces of a path, and how many frames at the beginning of each were jumped to: 0 or 1."""


def _random(begin: Path, speed: float, back: int, rng: np.random.Generator) -> Pieces:
    while True:
        piece = wander(begin, 64, speed, rng)
        yield piece, 0
        begin = piece[-1]


def _loops(begin: Path, speed: float, back: int, rng: np.random.Generator) -> Pieces:
    """Every loop is walked twice, so that what it shows is seen again after `back` frames; then on to the next."""
    while True:
        lap = circle(begin, back, speed, int(rng.choice((-1, 1))))
        yield np.tile(lap, (LAPS, 1)), 0
        leg = wander(begin, max(1, back // 4), speed, rng)
        yield leg, 0
        begin = leg[-1]


def _returns(begin: Path, speed: float, back: int, rng: np.random.Generator) -> Pieces:
    """Out for `back` frames and, walking backwards, the same way home: distances up to twice that."""
    while True:
        out = wander(begin, back, speed, rng)
        yield np.concatenate([out, out[-2::-1], begin[None]]), 0
        begin = np.array([*begin[:2], rng.uniform(0, 2 * np.pi)])


def _jumps(begin: Path, speed: float, back: int, rng: np.random.Generator) -> Pieces:
    """After every `back` frames to some frame of before, as it was then, and on from there."""
    been = begin[None]
    while True:
        piece = wander(been[-1], back, speed, rng)
        yield piece, 0
        been = np.concatenate([been, piece])
        goal = been[rng.integers(0, len(been))]
        yield goal[None], 1
        been = np.concatenate([been, goal[None]])


PIECES: dict[Walk, Callable[[Path, float, int, np.random.Generator], Pieces]] = {
    "random": _random,
    "loops": _loops,
    "returns": _returns,
    "jumps": _jumps,
}
