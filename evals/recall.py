"""How many bits answers tell: which of N places is it, read off a frame that a system made of one of them?

A frame is decoded as the candidate, of N true frames, that it is nearest to in squared error. Its doubt is the root of
that error over the root of the error of the second nearest: 0 for a copy, near 1 for a frame that is like none.

What a decoded place tells of the true one is bounded from below. Of answers in the same band of doubt, let e be the
share that is wrong in the OTHER clips; then an answer is worth log2(N q) bits with q = 1 - e where it is right and
e / (N - 1) where it is wrong. For any q that was not fitted to the answer, the mean of this is at most the mutual
information between the place and the frame made (Barber and Agakov, 2003); at q's own e it is Fano's inequality with a
uniform place (Cover and Thomas, 2006, theorem 2.10.1), log2 N - H(e) - e log2(N - 1), per band of doubt: who says
nothing where it knows nothing loses nothing by it. Guessing is worth 0, certainty log2 N. Being a mean over answers, it
has an interval over clips like any other; a bound by chance below 0 says 0.

Letters: n answers, N candidates, c clips.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Values = NDArray[np.float64]
BANDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Where a band of doubt ends and the next begins."""
PRIOR = 1.0
"""How many answers the belief weighs, before any was seen, that a band tells nothing."""


def identify(generated: Frames, candidates: Frames) -> tuple[NDArray[np.int64], Values]:
    """Which candidate (N, H, W, 3) each frame (n, H, W, 3) is nearest to, and the doubt; (n,) both."""
    flat = candidates.reshape(len(candidates), -1).astype(np.float64)
    errors = np.stack([((frame.reshape(-1) - flat) ** 2).mean(1) for frame in generated.astype(np.float64)])
    best, second = np.partition(errors, 1, axis=1)[:, :2].T
    doubt = np.sqrt(np.divide(best, second, out=np.ones_like(best), where=second > 0))
    return errors.argmin(1), doubt


def bits(right: NDArray[np.bool_], doubt: Values, places: int) -> Values:
    """Bits that each answer (c, n) tells, of log2(places) at most; see above."""
    band = np.digitize(doubt, BANDS)
    worth = np.zeros(right.shape)
    for which in range(len(BANDS) + 1):
        inside = band == which
        wrong, answers = (inside & ~right).sum(1), inside.sum(1)
        # What the other clips say of this band; the prior is a guess among all places.
        others = answers.sum() - answers
        missed = (wrong.sum() - wrong + PRIOR * (1 - 1 / places)) / (others + PRIOR)
        chance = np.where(right, 1 - missed[:, None], missed[:, None] / (places - 1))
        worth += np.where(inside, np.log2(places * np.where(inside, chance, 1)), 0)
    return worth
