"""A linear probe: can a class be read from a vector? Ridge regression on one-hot classes, judged out of fold.

Solved in its dual form, so that a vector may be far longer than the clips are many. Letters: n clips, F numbers of a
clip's vector, A questions asked of each clip, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
PENALTY = 0.1  # of the squared weights, for vectors of mean square 1
Numbers = NDArray[np.float64]
Classes = NDArray[np.int64]


def out_of_fold(vectors: Numbers, classes: Classes, folds: int = FOLDS) -> NDArray[np.bool_]:
    """Which classes (n, A) are read correctly from vectors (n, F) by probes that never saw the clip.

    What a vector says nothing about is answered with the most frequent class of all clips: chance, neither better nor
    worse.
    """
    fold = np.arange(len(vectors)) % folds
    onehot = np.eye(classes.max() + 1)[classes]  # n A K
    usual = onehot.mean(0)
    answers = np.empty_like(classes)
    for part in range(folds):
        held = fold == part
        predicted = _ridge(vectors[~held], (onehot - usual)[~held].reshape((~held).sum(), -1), vectors[held])
        answers[held] = (predicted.reshape(-1, *usual.shape) + usual).argmax(-1)
    return np.asarray(answers == classes)


def _ridge(known: Numbers, targets: Numbers, queries: Numbers) -> Numbers:
    """Predictions (m, ...) for vectors (m, F) from known ones (n, F) and their targets (n, ...)."""
    mean, spread = known.mean(0), known.std(0)
    live = spread > 1e-9
    if not live.any():
        return np.zeros((len(queries), targets.shape[1]))
    scale = spread[live] * np.sqrt(live.sum())
    known, queries = ((x[:, live] - mean[live]) / scale for x in (known, queries))
    weights = np.linalg.solve(known @ known.T + PENALTY * np.eye(len(known)), targets)
    return np.asarray(queries @ known.T @ weights)
