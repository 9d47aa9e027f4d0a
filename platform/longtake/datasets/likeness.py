"""Near copies across the splits: an episode that was re-encoded, or cut in two with its halves in unlike splits.

Equal episodes have equal digests and lie in one split by themselves; these do not. An episode is told by small grey
pictures of a few of its frames. Two are copies if all of these agree to what a codec changes; one goes on where another
ends if the frames on both sides of the cut are no further apart than neighbours within each of them. That finds what
people do by accident; it is a warning and no proof: copies that were cropped, mirrored or slowed down are not found,
nor parts of a recording whose neighbour frames have little in common (of the mazes' quick turns, 3 cuts in 100 are).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PICTURES = 6  # frames of an episode that are compared: the first, the last, and evenly between
EDGE = 8  # rows and columns of a small picture
CODEC = 6.0  # grey levels (RMS) that a codec may move a small picture
UNUSUAL = 0.2  # of the median distance to all episodes: what is further away is no likeness, however fast things move
TEXTURE = 4.0  # grey levels (standard deviation) below which a small picture says nothing
GROUP = 1 << 16  # pairs compared at once, a few hundred MB of them


class Look(NamedTuple):
    """Small `pictures`, uint8 (PICTURES * EDGE * EDGE,); `step`: grey levels (RMS) between neighbour frames."""

    pictures: NDArray[np.uint8]
    step: float


class Leak(NamedTuple):
    """Two episodes, by their numbers, in unlike splits: `copy` or `continued`."""

    held_out: int
    other: int
    kind: str


def look(frames: NDArray[np.uint8]) -> Look:
    """How frames (T, H, W, 3) look. The step is taken at both ends, where an episode may have been cut."""
    count = len(frames)
    chosen = np.linspace(0, count - 1, PICTURES).round().astype(int)
    ends = [0, min(1, count - 1), max(0, count - 2), count - 1]
    small = _small(frames[np.concatenate([chosen, ends])])
    first, second, before, last = small[PICTURES:]
    step = max(_rms(first, second), _rms(before, last))
    return Look(small[:PICTURES].round().astype(np.uint8).ravel(), float(step))


def leaks(looks: list[Look], splits: list[str]) -> list[Leak]:
    """Pairs of a held-out episode and one of another split that are near copies or parts of one recording."""
    pictures = np.stack([one.pictures for one in looks]).reshape(-1, PICTURES, EDGE * EDGE).astype(np.float32)
    steps = np.array([one.step for one in looks], np.float32)
    telling = pictures.std(axis=2) > TEXTURE
    named = np.array(splits)
    held = np.flatnonzero(named != "train")
    alike: list[Leak] = []
    for group in np.array_split(held, max(1, len(held) * len(looks) // GROUP)):
        # Two held-out splits are compared once; the training split with each of them.
        apart = np.not_equal(named[group][:, None], named) & (
            (named == "train") | (np.arange(len(looks)) > group[:, None])
        )
        copied = _copies(pictures, telling, group) & apart
        continued = _continued(pictures, telling, steps, group) & apart & ~copied
        for kind, pairs in (("copy", copied), ("continued", continued)):
            alike += [Leak(int(group[a]), int(b), kind) for a, b in np.argwhere(pairs)]
    return alike


def _copies(pictures: NDArray[np.float32], telling: NDArray[np.bool_], group: NDArray[np.int64]) -> NDArray[np.bool_]:
    alike = np.repeat(np.asarray(telling[group].any(axis=1))[:, None], len(pictures), axis=1)
    for number in range(PICTURES):
        alike &= _near(pictures[group, number], pictures[:, number], CODEC)
    return alike


def _continued(
    pictures: NDArray[np.float32], telling: NDArray[np.bool_], steps: NDArray[np.float32], group: NDArray[np.int64]
) -> NDArray[np.bool_]:
    near = np.minimum(steps[group][:, None], steps) + 1  # a level for rounding
    cuts = [
        _near(pictures[group, mine], pictures[:, theirs], near) & telling[group, mine][:, None] & telling[:, theirs]
        for mine, theirs in ((0, PICTURES - 1), (PICTURES - 1, 0))
    ]
    return np.asarray(cuts[0] | cuts[1])


def _near(
    one: NDArray[np.float32], other: NDArray[np.float32], limit: NDArray[np.float32] | float
) -> NDArray[np.bool_]:
    """Which pictures of (A, N) and (B, N) are within the limit, and unusually near: (A, B)."""
    distance = _rms(one[:, None], other[None])
    return np.asarray(distance <= np.minimum(limit, UNUSUAL * np.median(distance, axis=1, keepdims=True)))


def _small(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Frames (N, H, W, 3) as grey pictures (N, EDGE * EDGE): means of nearly equal cells."""
    grey = frames.astype(np.float32).mean(axis=3)
    for axis in (1, 2):
        size = grey.shape[axis]
        begins = np.arange(EDGE) * size // EDGE if size >= EDGE else np.arange(EDGE) * 0
        counts = np.diff(np.append(begins, size)) if size >= EDGE else np.full(EDGE, size)
        sums = np.add.reduceat(grey, begins, axis=axis) if size >= EDGE else grey.sum(axis=axis, keepdims=True)
        grey = sums / np.expand_dims(counts.astype(np.float32), [a for a in range(3) if a != axis])
    return np.asarray(grey.reshape(len(frames), -1), np.float32)


def _rms(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(np.square(one - other).mean(axis=-1)), np.float32)
