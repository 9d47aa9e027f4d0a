"""What the scores say: a sentence per claim, with its interval, and the table of all systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from evals.compare import Difference, paired_difference, summarise
from jobs.plots import METRIC_NAMES, SYSTEM_NAMES, WIPED, Look, looks

if TYPE_CHECKING:
    import pandas as pd

FLOORS = ("copy_last", "context_mean")


@dataclass(frozen=True)
class Claim:
    """One comparison: who, against whom, and what came out."""

    system: str
    other: str
    verdict: Literal["better", "worse", "undecided"]
    sentence: str
    difference: Difference


def claims(scores: pd.DataFrame, window: int) -> list[Claim]:
    """The best model against the floors, every other model, and itself wiped; in PSNR, at distances beyond the window.

    Pairs without two episodes in common are left out. Where no distance is beyond the window, all of them count.
    """
    beyond = window if (scores.distance > window).any() else 0
    where = f"at distances beyond its window of {window} frames" if beyond else "over all distances"
    styles = looks(scores)
    best = best_model(scores, beyond)
    if best is None:
        return []
    models = [look.system for look in styles.values() if look.kind == "model" and look.system != best]
    made = []
    for other in (best + WIPED, *models, *FLOORS):
        if other not in styles:
            continue
        try:
            gap = paired_difference(scores, best, other, beyond=beyond)
        except ValueError:
            continue
        made.append(_claim(best, other, gap, where))
    return made


def best_model(scores: pd.DataFrame, beyond: int) -> str | None:
    """The model of the highest mean PSNR beyond a distance."""
    found = summarise(scores[scores.metric == "psnr"], beyond=beyond)
    models = [look.system for look in looks(scores).values() if look.kind == "model"]
    found = found[found.system.isin(models)]
    return str(found.loc[found["mean"].idxmax(), "system"]) if len(found) else None


def _claim(system: str, other: str, gap: Difference, where: str) -> Claim:
    called = "itself with its memory wiped" if other == system + WIPED else SYSTEM_NAMES.get(other, other)
    facts = f"95 % interval {number(gap.low)} to {number(gap.high)}, n = {gap.episodes} held-out episodes"
    if gap.low > 0:
        return Claim(system, called, "better", f"beats {called} by {number(gap.mean)} dB {where} ({facts}).", gap)
    if gap.high < 0:
        return Claim(system, called, "worse", f"loses to {called} by {number(-gap.mean)} dB {where} ({facts}).", gap)
    sentence = f"and {called} cannot be told apart {where}: {number(gap.mean, sign=True)} dB ({facts})."
    return Claim(system, called, "undecided", sentence, gap)


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number as people write it, with a true minus."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Cell:
    """A mean with the half width of its interval, as text; `best` among the models."""

    mean: str
    half: str
    best: bool


@dataclass(frozen=True)
class SummaryRow:
    """A system and its cells, in the order of `columns`."""

    look: Look
    episodes: int
    cells: list[Cell | None]


@dataclass(frozen=True)
class Summary:
    """The table of one task: per metric, all distances and (where there are such) those beyond the window."""

    columns: list[tuple[str, str]]
    rows: list[SummaryRow]


def summary(scores: pd.DataFrame, window: int) -> Summary:
    """Means and 95 % intervals over episodes of every system."""
    metrics = [metric for metric in METRIC_NAMES if (scores.metric == metric).any()]
    ranges = [(0, "all distances")]
    if window and (scores.distance > window).any():
        ranges.append((window, f"beyond {window} frames"))
    styles = looks(scores)
    found = {beyond: summarise(scores, beyond=beyond).set_index(["system", "metric"]) for beyond, _ in ranges}
    cells = {look: [_cell(found[b], look, m, styles) for m in metrics for b, _ in ranges] for look in styles.values()}
    counts = scores.groupby("system").episode.nunique()
    rows = [SummaryRow(look, int(counts[look.system]), row) for look, row in cells.items()]
    return Summary([(METRIC_NAMES[m], title) for m in metrics for _, title in ranges], rows)


def _cell(found: pd.DataFrame, look: Look, metric: str, styles: dict[str, Look]) -> Cell | None:
    if (look.system, metric) not in found.index:
        return None
    digits = 2 if metric == "psnr" else 3
    row = found.loc[(look.system, metric)]
    here = found.xs(metric, level="metric")
    rivals: Sequence[str] = [s for s in here.index if styles[s].kind == "model"]
    best = look.kind == "model" and len(rivals) > 1 and row["mean"] >= here.loc[rivals, "mean"].max()
    half = row["high"] - row["mean"]
    return Cell(number(row["mean"], digits), "" if half != half else number(half, digits), bool(best))
