"""What the scores say: a sentence per claim, with its interval, and the table of all systems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from longtake.evals.registry import METRICS
from longtake.evals.task import STRANGER
from longtake.jobs.plots.base import WIPED, Look, looks
from longtake.tables.scores import Difference, paired_difference, summarise

if TYPE_CHECKING:
    import pandas as pd

SEEN = "seen"
BASELINES = ("copy_last", "context_mean")
CALLED = {"copy_last": "copying the last frame", "context_mean": "the mean of the context"}
VERBS = {"better": "beats", "worse": "loses to", "undecided": "cannot be told apart from"}


@dataclass(frozen=True)
class Claim:
    """One comparison: who, against whom, what came out, and in words that follow the system's name."""

    system: str
    other: str
    verdict: Literal["better", "worse", "undecided"]
    sentence: str
    difference: Difference


def strata(scores: pd.DataFrame) -> list[str]:
    """The kinds of frames that the task tells apart; none for most."""
    return sorted(scores.stratum.dropna().unique()) if "stratum" in scores else []


def of_memory(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows that say something about memory: of places that the context showed, where the task tells them apart."""
    return scores[scores.stratum == SEEN] if SEEN in strata(scores) else scores


def reach(scores: pd.DataFrame, window: int) -> int:
    """Beyond which distance claims are made: what windows reach, or 0 (all) where nothing lies beyond it."""
    return window if (scores.distance > window).any() else 0


def claims(scores: pd.DataFrame, window: int) -> list[Claim]:
    """The best model against itself wiped and misled, every other model and the floors, in PSNR beyond what windows
    reach.

    Pairs without two episodes in common are left out.
    """
    beyond = reach(scores, window)
    styles = looks(scores)
    best = best_model(scores, beyond)
    if best is None:
        return []
    models = [look.system for look in styles.values() if look.kind == "model" and look.system != best]
    found_claims = []
    for other in (best + WIPED, best + STRANGER, *models, *BASELINES):
        if other not in styles:
            continue
        try:
            gap = paired_difference(scores, best, other, beyond=beyond)
        except ValueError:
            continue
        found_claims.append(_claim(best, other, gap))
    return found_claims


def verdict(comparisons: Sequence[Claim], task: str, beyond: int) -> str:
    """All claims of a task in one sentence."""
    where = f", at distances beyond the {beyond} frames that windows reach," if beyond else ""
    said = []
    for kind, verb in VERBS.items():
        others = [claim.other for claim in comparisons if claim.verdict == kind]
        if others:
            said.append(f"{verb} {_join(others)}")
    return f"On {task}{where} {comparisons[0].system} {_join(said, ', and ')}."


def _claim(system: str, other: str, gap: Difference) -> Claim:
    controls = {system + WIPED: "itself with its memory wiped", system + STRANGER: "itself with a stranger's context"}
    called = (CALLED | controls).get(other, other)
    facts = f"(95 % interval {number(gap.low)} to {number(gap.high)}, n = {gap.episodes})"
    facts = facts.replace(" %", "\N{NO-BREAK SPACE}%").replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    kind: Literal["better", "worse", "undecided"]
    kind = "better" if gap.low > 0 else "worse" if gap.high < 0 else "undecided"
    how = f": {number(gap.mean, sign=True)} dB" if kind == "undecided" else f" by {number(abs(gap.mean))} dB"
    return Claim(system, called, kind, f"{VERBS[kind]} {called}{how} {facts}", gap)


def _join(words: Sequence[str], last: str = " and ") -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + last + words[-1]


def best_model(scores: pd.DataFrame, beyond: int) -> str | None:
    """The model of the highest mean PSNR beyond a distance."""
    return next(iter(ranked_models(scores, beyond)), None)


def ranked_models(scores: pd.DataFrame, beyond: int) -> list[str]:
    """The models by their mean PSNR beyond a distance, the best first."""
    means_of = summarise(scores[scores.metric == "psnr"], beyond=beyond)
    means = dict(zip(means_of.system, means_of["mean"], strict=True))
    models = [system for system, look in looks(scores).items() if look.kind == "model" and system in means]
    return sorted(models, key=means.__getitem__, reverse=True)


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
    """The table of one task: per metric, all distances and (where there are such) those beyond the reach of
    windows, or the
    kinds of frames that the task tells apart."""

    columns: list[tuple[str, str]]
    rows: list[SummaryRow]
    explained: list[str]

    @property
    def marked(self) -> bool:
        """Whether a best model stands out among several."""
        return any(cell.best for row in self.rows for cell in row.cells if cell)


def summary(scores: pd.DataFrame, window: int) -> Summary:
    """Means and 95 % intervals over episodes of every system."""
    ranges = {0: "all distances"}
    if window and reach(scores, window):
        ranges[window] = f"beyond {window} frames"
    styles, kinds = looks(scores), strata(scores)
    titles, columns = [], []
    for metric in (name for name in METRICS if (scores.metric == name).any()):
        rows = scores[scores.metric == metric]
        sets_of_clips = (rows.episode < 0).all()
        if kinds and not sets_of_clips:
            for kind in kinds:
                titles.append((METRICS[metric].heading, kind))
                columns.append(_column(rows[rows.stratum == kind], metric, 0, styles))
            continue
        for beyond, title in {0: f"of {int(rows.clips.max())} clips"}.items() if sets_of_clips else ranges.items():
            titles.append((METRICS[metric].heading, title))
            columns.append(_column(rows, metric, beyond, styles))
    counts = scores[scores.episode >= 0].groupby("system").episode.nunique().to_dict()
    lines = [
        SummaryRow(look, int(counts.get(system, 0)), [column.get(system) for column in columns])
        for system, look in styles.items()
    ]
    said = [metric.explained for name, metric in METRICS.items() if (scores.metric == name).any() and metric.explained]
    return Summary(titles, lines, list(dict.fromkeys(said)))


def _column(rows: pd.DataFrame, metric: str, beyond: int, styles: dict[str, Look]) -> dict[str, Cell]:
    """A metric of every system that has it; the best of several models is marked."""
    summaries = summarise(rows, beyond=beyond)
    means = dict(zip(summaries.system, summaries["mean"], strict=True))
    halves = dict(zip(summaries.system, summaries["high"] - summaries["mean"], strict=True))
    models = [system for system in means if styles[system].kind == "model"]
    best = max(models, key=lambda system: METRICS[metric].goodness(means[system])) if len(models) > 1 else None
    digits = METRICS[metric].digits
    return {
        system: Cell(
            number(mean, digits),
            "" if math.isnan(halves[system]) else number(halves[system], digits),
            system == best,
        )
        for system, mean in means.items()
    }
