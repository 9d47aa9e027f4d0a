"""The memory horizon: how many frames back a model still knows what it was shown, as one number with an interval.

Of retrieval's scores. At a distance the model is ahead where it beats copy-last-frame, context-mean and itself with its
memory wiped: the lower end of the 95 % bootstrap interval of the paired difference over episodes is above `MARGIN_DB`,
and LPIPS, where measured, is not worse (its interval does not lie wholly on the wrong side). The first distance where
it no longer is ahead ends the horizon, which counts the frames before: 0 says that nothing is remembered, and the
farthest distance measured that the end was not found. Copy-last is the truth itself one frame back and hard to beat
while the place is still in view, so nearest distances where it alone leads are passed over until the model is first
ahead.

The interval is that of the horizons of resampled episodes, each by the same rule with the same widths.
Letters: n episodes, d distances, r rivals, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longtake.evals.bootstrap import TAIL, resampled_means
from longtake.evals.metrics.psnr import IDENTICAL_PSNR

if TYPE_CHECKING:
    import pandas as pd

TASK = "retrieval"
NEAR = "copy_last"
BASELINES = (NEAR, "context_mean")
WIPED = "/wiped"
MARGIN_DB = 0.1
LPIPS = ("lpips_alex", "lpips_vgg")
Numbers = NDArray[np.float64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True)
class Horizon:
    """How far back a system remembers: `frames` with its 95 % interval, out of `reach` that was measured.

    `lost_to` names the rival that it no longer beats, None where it beats them all up to the end. `lead` (d,), with
    `lead_low` and `lead_high`, is the PSNR above the best rival at each of the `distances`.
    """

    system: str
    frames: int
    low: int
    high: int
    reach: int
    lost_to: str | None
    episodes: int
    distances: list[int]
    lead: Numbers
    lead_low: Numbers
    lead_high: Numbers


@dataclass(frozen=True)
class _Gap:
    """Paired differences to one rival, the larger the better: their mean and interval (d,), resampled means (B, d)."""

    mean: Numbers
    low: Numbers
    high: Numbers
    drawn: Numbers


def rivals(system: str) -> tuple[str, ...]:
    """Whom a system has to beat."""
    return (*BASELINES, system + WIPED)


def memory_horizon(scores: pd.DataFrame, system: str, margin: float = MARGIN_DB) -> Horizon:
    """The horizon of a system.

    Args:
        scores: rows of retrieval, of one protocol, one checkpoint per system.

    Raises:
        ValueError: the rows are of other tasks or of several protocols, a rival is missing, fewer than two episodes.
    """
    _check(scores, system)
    gaps, settled, distances, count = _gaps(scores, system, "psnr")
    drawn = np.stack([gap.drawn - (gap.mean - gap.low) > margin for gap in gaps], 1)  # B r d
    beaten = np.stack([gap.low > margin for gap in gaps])
    for metric in (name for name in LPIPS if (scores.metric == name).any()):
        looks, _, _, _ = _gaps(scores, system, metric)
        beaten &= np.stack([gap.high >= 0 for gap in looks])
        drawn &= np.stack([gap.drawn + (gap.high - gap.mean) >= 0 for gap in looks], 1)
    beaten, drawn = beaten | settled, drawn | settled
    end = _end(beaten)
    many = [_frames(distances, _end(one)) for one in drawn]
    low, high = np.quantile(many, [TAIL, 1 - TAIL], method="inverted_cdf")
    nearest = np.stack([np.where(settled[r], np.inf, gap.mean) for r, gap in enumerate(gaps)]).argmin(0)
    pick = (nearest, np.arange(len(distances)))
    return Horizon(
        system=system,
        frames=_frames(distances, end),
        low=int(low),
        high=int(high),
        reach=distances[-1],
        lost_to=None if end == len(distances) else _lost_to(beaten, gaps, end, rivals(system)),
        episodes=count,
        distances=distances,
        lead=np.stack([gap.mean for gap in gaps])[pick],
        lead_low=np.stack([gap.low for gap in gaps])[pick],
        lead_high=np.stack([gap.high for gap in gaps])[pick],
    )


def _check(scores: pd.DataFrame, system: str) -> None:
    tasks, protocols = sorted(set(scores.task)), sorted(set(scores.protocol))
    if tasks != [TASK]:
        raise ValueError(f"task: a horizon is of {TASK}, these scores are of {', '.join(tasks) or 'nothing'}")
    if len(protocols) > 1:
        raise ValueError(f"protocol: {system} was scored under several: {', '.join(protocols)}")
    scored = set(scores.system[scores.metric == "psnr"])
    missing = [name for name in (system, *rivals(system)) if name not in scored]
    if missing:
        raise ValueError(f"{system}: a horizon needs the PSNR of {', '.join(missing)} too")


def _gaps(scores: pd.DataFrame, system: str, metric: str) -> tuple[list[_Gap], Truths, list[int], int]:
    """Differences to each rival, where a rival is the truth itself (r, d), the distances, and how many episodes."""
    rows = scores[(scores.metric == metric) & scores.system.isin([system, *rivals(system)])]
    wide = rows.pivot_table(index="episode", columns=["system", "distance"], values="value").dropna()
    if len(wide) < 2:
        raise ValueError(f"{system}: fewer than two episodes in which it and all its rivals were scored in {metric}")
    distances = sorted({int(distance) for distance in wide[system].columns})
    own = wide[system][distances].to_numpy(np.float64)
    gaps, truth = [], []
    for rival in rivals(system):
        other = wide[rival][distances].to_numpy(np.float64)
        sign = -1 if metric in LPIPS else 1
        gap = sign * (own - other)
        drawn = resampled_means(gap)
        low, high = np.quantile(drawn, [TAIL, 1 - TAIL], 0)
        gaps.append(_Gap(gap.mean(0), low, high, drawn))
        truth.append((other >= IDENTICAL_PSNR).all(0) & (rival == NEAR))
    return gaps, np.stack(truth), distances, len(wide)


def _end(beaten: Truths) -> int:
    """Index of the first distance at which not all rivals (r, d) are beaten, the near ones passed over; d if none."""
    ahead = np.asarray(beaten.all(0))
    first = int(ahead.argmax())
    others = np.delete(beaten, BASELINES.index(NEAR), 0)
    if not ahead[first] or not others[:, :first].all():
        return 0
    behind = ~ahead[first:]
    return first + int(behind.argmax()) if behind.any() else len(ahead)


def _frames(distances: Sequence[int], end: int) -> int:
    """Frames remembered when the horizon ends at an index of the distances."""
    return 0 if end == 0 else distances[-1] if end == len(distances) else distances[end] - 1


def _lost_to(beaten: Truths, gaps: Sequence[_Gap], end: int, names: Sequence[str]) -> str:
    """The rival that leads most where the horizon ends; where it is 0, of those that are not passed over."""
    near, at = BASELINES.index(NEAR), end
    ahead = beaten[:, at].copy()
    if end == 0:
        others = np.delete(beaten, near, 0).all(0)
        if others.all():
            return NEAR
        at = int((~others).argmax())
        ahead = beaten[:, at] | (np.arange(len(beaten)) == near)
    return names[int(np.argmin([np.inf if ahead[r] else gap.mean[at] for r, gap in enumerate(gaps)]))]
