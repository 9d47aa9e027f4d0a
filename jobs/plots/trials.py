"""Plots of the table `trials`: a sweep's history, its space, what mattered in it, and what its quality costs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.jobs.plots.base import FLOOR_INK, NARROW_PX, SERIES, new_figure, styled
from longtake.tables.schema import COLUMNS, EVENT_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Draw = Callable[[Axes, pd.DataFrame, bool], None]

MARKS = {"done": ("o", SERIES[0]), "pruned": ("v", FLOOR_INK), "failed": ("x", SERIES[1])}
"""State → marker and colour; others are diamonds."""
COSTS = {
    "ms_per_frame": "ms to generate a frame",
    "carried_bytes": "bytes carried from frame to frame",
    "seconds": "seconds of training",
}
"""What the objective can be weighed against; the last one where a sweep weighs nothing else."""
BEST_SHARE = 0.25  # of the trials that are drawn strong in the space
PLACES = {0.0: (0, -6, "center", "top"), 1.0: (0, 6, "center", "bottom")}
"""Of the words at the ends of an axis of the space: offset in px, and which side of them touches it."""
SPACE_PAD = 26  # px between the axes of the space and its title, for the words above them
DECADES = 100.0  # a positive axis that spans more is drawn in powers of ten
NUMBER_PX = (26, 14)  # of a trial's number beside its point
BAR_PX, HEAD_PX = 34, 50  # of a bar, and above all of them
ENOUGH = 8  # done trials from which importances are told


def history_curve(trials: pd.DataFrame, *, width: int = 920, height: int = 300) -> Figure:
    """The objective of every trial that has one, in the order of their numbers, and the best one so far.

    Raises:
        ValueError: no trial has an objective.
    """
    return _panels(trials, _history, width, height)


def space_curve(trials: pd.DataFrame, *, width: int = 920, height: int = 340) -> Figure:
    """Parallel coordinates: a line per trial through its settings to its objective, the best quarter strong.

    Raises:
        ValueError: no trial has an objective, or no setting differs.
    """
    return _panels(trials, _space, width, height)


def importance_bars(trials: pd.DataFrame, *, width: int = 920) -> Figure:
    """How much each setting decided whether a trial was among the good ones (PED-ANOVA, Optuna).

    Raises:
        ValueError: too few trials are done, or no setting differs.
    """
    return _panels(trials, _importances, width, HEAD_PX + BAR_PX * len(settings_of(trials)))


def price_curve(trials: pd.DataFrame, *, width: int = 920, height: int = 300) -> Figure:
    """The objective of done trials against each cost that the sweep weighs, else against seconds of training.

    The line joins those that none beats in both.

    Raises:
        ValueError: no trial has an objective.
    """
    weighed = [cost for cost in COSTS if cost in trials and trials[cost].notna().any()]
    return _panels(trials, _price, width, height, [cost for cost in weighed if cost != "seconds"] or ["seconds"])


def settings_of(trials: pd.DataFrame) -> list[str]:
    """The columns that are axes of the sweep and differ between its trials."""
    known = {*COLUMNS["trials"], EVENT_TIME}
    return [str(name) for name in trials if name not in known and trials[name].dropna().nunique() > 1]


def importances(trials: pd.DataFrame) -> dict[str, float]:
    """Setting → its share of what mattered, over the done trials.

    Raises:
        ValueError: too few trials are done, no setting differs, or it is not told which way is good.
    """
    import optuna

    done = trials[(trials.state == "done") & trials.objective.notna()]
    names = [name for name in settings_of(done) if done[name].notna().all()]
    better = _better(trials)
    if len(done) < ENOUGH or not names or better is None:
        raise ValueError(f"importances: {len(done)} done trials with {len(names)} settings that differ tell nothing")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if better == "higher" else "minimize")
    axes = {name: _distribution(done[name]) for name in names}
    for row in done.to_dict("records"):
        params = {name: _label(row[name]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=axes, value=float(row["objective"])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        judge = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        shares: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=judge)
    return shares


def _distribution(values: pd.Series[Any]) -> Any:
    """The range of a setting, as far as the trials know it."""
    from optuna import distributions as kinds

    labels = [_label(value) for value in values.unique()]
    numeric = [label for label in labels if isinstance(label, (int, float)) and not isinstance(label, bool)]
    if len(numeric) < len(labels):
        return kinds.CategoricalDistribution(labels)
    low, high = min(numeric), max(numeric)
    if all(isinstance(label, int) for label in numeric):
        return kinds.IntDistribution(int(low), int(high))
    return kinds.FloatDistribution(low, high, log=_spans_decades(values))


def _label(value: Any) -> Any:
    """A value of a table as plain Python."""
    return value.item() if isinstance(value, np.generic) else value


def _spans_decades(values: pd.Series[Any]) -> bool:
    return bool(values.min() > 0 and values.max() >= DECADES * values.min())


def _better(trials: pd.DataFrame) -> str | None:
    """Which way is good; None where the rows do not tell."""
    words = {str(word) for word in trials["better"].dropna()} if "better" in trials else set()
    return words.pop() if len(words) == 1 else None


def _panels(trials: pd.DataFrame, draw: Draw, width: int, height: int, costs: Sequence[str] = ("",)) -> Figure:
    """A panel per sweep, and of a plot of costs one per cost: the columns price, and priced, its name in words."""
    rows = trials[trials.objective.notna()] if len(trials) else trials
    if not len(rows):
        raise ValueError("objective: no trial has told one")
    panels = [(str(sweep), cost) for sweep in sorted(rows.sweep.unique()) for cost in costs]
    with styled():
        figure = new_figure(width, height * len(panels))
        for number, (sweep, cost) in enumerate(panels, 1):
            axes = figure.add_subplot(len(panels), 1, number)
            here = rows[rows.sweep == sweep].sort_values("trial")
            draw(axes, here.assign(price=here[cost], priced=COSTS[cost]) if cost else here, width < NARROW_PX)
            if rows.sweep.nunique() > 1:
                axes.set_title(f"{axes.get_title('left')}, sweep {sweep}", pad=SPACE_PAD if draw is _space else None)
    return figure


def _history(axes: Axes, rows: pd.DataFrame, narrow: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    better = _better(rows)
    if better is not None:
        whole = rows[rows.state == "done"]
        best = whole.objective.cummax() if better == "higher" else whole.objective.cummin()
        axes.step(whole.trial, best, where="post", color=SERIES[0], linewidth=1.6, label="best so far")
    for state, group in rows.groupby("state"):
        marker, color = MARKS.get(str(state), ("D", FLOOR_INK))
        axes.plot(group.trial, group.objective, marker, color=color, fillstyle="none", label=str(state))
    axes.set_title(f"objective{f', {better} is better' if better else ''}")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)
    if narrow:
        axes.legend()
    else:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0)


def _space(axes: Axes, rows: pd.DataFrame, narrow: bool) -> None:
    names = settings_of(rows)
    if not names:
        raise ValueError("space: no setting differs between the trials")
    better = _better(rows)
    # Done ones alone are ranked: they are at one step, where a pruned one may look better early than any does late.
    rank = rows.objective.where(rows.state == "done").rank(ascending=better != "higher", method="first")
    strong = rank <= max(1, BEST_SHARE * len(rows))
    columns = [*names, "objective"]
    places = np.stack([_places(axes, number, rows[name]) for number, name in enumerate(columns)], axis=1)
    across = np.arange(len(columns))
    for line, good in sorted(zip(places, strong, strict=True), key=lambda pair: bool(pair[1])):
        color, alpha, width = (SERIES[0], 0.9, 2.0) if good else (FLOOR_INK, 0.45, 1.0)
        axes.plot(across, line, color=color, alpha=alpha, linewidth=width, clip_on=False)
    for place in range(len(columns)):
        axes.axvline(place, color="#c3c9d1", linewidth=1, zorder=0)
    axes.set_xticks(across, [_short(name, narrow) for name in columns])
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, pad=20, labelcolor="#1d232b")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(-0.2, len(columns) - 0.8)
    axes.set_ylim(0, 1)
    axes.set_title(
        "settings of all trials" + ", the best quarter strong" * (better is not None and not narrow), pad=SPACE_PAD
    )


def _places(axes: Axes, number: int, values: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Where values lie on their axis, 0 to 1, with the ends (or every label) written beside it."""
    labels = values.dropna()
    numeric = labels.map(lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)).all()
    if not numeric:
        names = sorted({str(value) for value in labels})
        step = 1 / max(1, len(names) - 1)
        ticks = {name: i * step for i, name in enumerate(names)}
        heights = values.map(lambda value: ticks.get(str(value), np.nan)).to_numpy(float)
    else:
        raw = values.to_numpy(float)
        scaled = np.log10(raw) if _spans_decades(labels) else raw
        low, high = np.nanmin(scaled), np.nanmax(scaled)
        heights = (scaled - low) / max(high - low, 1e-12)
        ticks = {f"{np.nanmin(raw):.3g}": 0.0, f"{np.nanmax(raw):.3g}": 1.0}
    for text, place in ticks.items():
        aside, up, across, stands = PLACES.get(place, (5, 3, "left", "bottom"))
        axes.annotate(
            text, (number, place), xytext=(aside, up), textcoords="offset points", ha=across, va=stands,
            color="#56606c", annotation_clip=False, zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
    return np.asarray(heights, float)


def _short(name: str, narrow: bool) -> str:
    """A dotted field, broken at its last dot; its last part alone on a phone."""
    first, _, last = name.rpartition(".")
    return last if narrow or not first else f"{first}\n{last}"


def _importances(axes: Axes, rows: pd.DataFrame, narrow: bool) -> None:
    shares = sorted(importances(rows).items(), key=lambda pair: pair[1])
    bars = axes.barh([_short(name, narrow).replace("\n", ".") for name, _ in shares], [v for _, v in shares],
                     height=0.55, color=SERIES[0])  # fmt: skip
    axes.bar_label(bars, [f"{share:.0%}" for _, share in shares], padding=6, color="#56606c")
    axes.set_xlim(0, 1.1)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.set_title(
        "what decided whether a trial was good" + f" (PED-ANOVA, {(rows.state == 'done').sum()} trials)" * (not narrow)
    )


def _price(axes: Axes, rows: pd.DataFrame, narrow: bool) -> None:
    done = rows[(rows.state == "done") & rows.price.notna()]
    if not len(done):
        raise ValueError("price: no trial is done")
    better = _better(rows)
    axes.plot(done.price, done.objective, "o", color=SERIES[0], fillstyle="none")
    if better is not None:
        front = unbeaten(done, better)
        axes.plot(front.price, front.objective, color=SERIES[0], linewidth=1.6, drawstyle="steps-post")
        _name_points(axes, front)
    axes.set_xlabel(str(rows.priced.iloc[0]))
    axes.set_title("objective against its price" + "; joined: trials that none beats in both" * (not narrow))


def _name_points(axes: Axes, front: pd.DataFrame) -> None:
    """The numbers of trials beside their points; one that would lie on another is left out."""
    axes.autoscale_view()
    taken: list[tuple[float, float]] = []
    for number, price, value in zip(front.trial, front.price, front.objective, strict=True):
        across, up = axes.transData.transform((price, value))
        if all(abs(across - x) > NUMBER_PX[0] or abs(up - y) > NUMBER_PX[1] for x, y in taken):
            axes.annotate(f"{number}", (price, value), xytext=(6, 5), textcoords="offset points", color="#56606c")
            taken.append((across, up))


def unbeaten(trials: pd.DataFrame, better: str) -> pd.DataFrame:
    """The trials that no other beats in both objective and price, the cheapest first."""
    rows = trials.sort_values(["price", "objective"], ascending=[True, better != "higher"])
    sign = 1 if better == "higher" else -1
    best = (sign * rows.objective).cummax()
    return rows[(sign * rows.objective > best.shift(fill_value=-np.inf)).to_numpy()]
