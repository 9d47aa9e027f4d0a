"""Plots of the table `bench`: what models cost against frames (rows of `longtake profile`), and bars for the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from longtake.jobs.plots.base import LINE_PX, NARROW_PX, SERIES, model_colors, new_figure, spread, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROFILE = "profile"
"""The name of a profile's rows."""
COSTS = {
    "frame operations": ("one more frame, GFLOP (counted)", "frames remembered"),
    "carried total": ("memory carried by a stream, MB (counted)", "frames remembered"),
    "frame time": ("one more frame, s (measured)", "frames remembered"),
    "step operations": ("training step, GFLOP (counted)", "frames of the clip"),
    "step time": ("training step, s (measured)", "frames of the clip"),
    "step memory": ("training step, peak MB (measured)", "frames of the clip"),
}
"""Metric of a profile → title of its panel, and what its frames are."""
CASE = re.compile(r"(.+), (\d+) frames")
BAR_PX, HEAD_PX = 26, 64  # of a bar, and of what stands around the bars of a panel
Lines = dict[str, dict[int, float]]


def costs_curve(bench: pd.DataFrame, *, width: int = 1100, height: int = 260, labels: bool = True) -> Figure:
    """Cost against frames, one line per model, from the rows of one profile; `height` of one panel.

    Raises:
        ValueError: no rows of a profile, or of several.
    """
    rows = bench[bench.name == PROFILE]
    if rows.run.nunique() != 1:
        raise ValueError(f"profile: rows of {rows.run.nunique()} of them, and a plot is of one")
    drawn = {metric: _lines(rows[rows.metric == metric]) for metric in COSTS}
    shown = {metric: lines for metric, lines in drawn.items() if lines}
    columns = 1 if width < NARROW_PX else 2
    lines_of_panels = -(-len(shown) // columns)
    with styled():
        figure = new_figure(width, height * lines_of_panels)
        panels = {}
        for number, (metric, lines) in enumerate(shown.items(), 1):
            title, across = COSTS[metric]
            axes = figure.add_subplot(lines_of_panels, columns, number, title=title, xscale="log", yscale="log")
            axes.set_xlabel(across)
            panels[axes] = _draw(axes, lines)
            _plain_ticks(axes)
        if labels:
            _name_lines(figure, panels)
    return figure


def profiled(bench: pd.DataFrame) -> list[str]:
    """The models that a profile tells of, in the order of its rows."""
    cases = (CASE.fullmatch(str(case)) for case in bench.case)
    return list(dict.fromkeys(match[1] for match in cases if match))


def _lines(rows: pd.DataFrame) -> Lines:
    """Model → frames → value."""
    lines: Lines = {}
    for case, value in zip(rows.case, rows.value, strict=True):
        match = CASE.fullmatch(str(case))
        if match and value > 0:
            lines.setdefault(match[1], {})[int(match[2])] = float(value)
    return {name: dict(sorted(points.items())) for name, points in lines.items()}


def _draw(axes: Axes, lines: Lines) -> dict[str, float]:
    """Draw the lines; returns where each ends."""
    colors, ends = model_colors(list(lines)), {}
    for name, points in lines.items():
        axes.plot(list(points), list(points.values()), color=colors[name], linewidth=1.8, marker="o", markersize=4)
        ends[name] = list(points.values())[-1]
    return ends


def _plain_ticks(axes: Axes) -> None:
    """Numbers as people write them; more of them where an axis spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _name_lines(figure: Figure, panels: Mapping[Axes, dict[str, float]]) -> None:
    """Names at the right ends, pushed apart; the axes are logarithmic."""
    figure.draw_without_rendering()
    for axes, ends in panels.items():
        low, high = (math.log10(end) for end in axes.get_ylim())
        step = LINE_PX * (high - low) / axes.get_window_extent().height
        names = sorted(ends, key=lambda name: ends[name])
        places = spread([math.log10(ends[name]) for name in names], step, low, high)
        colors = model_colors(list(ends))
        for name, place in zip(names, places, strict=True):
            axes.annotate(
                name, (1, ends[name]), xycoords=axes.get_yaxis_transform(),
                xytext=(8, (place - math.log10(ends[name])) / step * LINE_PX), textcoords="offset points",
                va="center_baseline", color=colors[name], annotation_clip=False,
            )  # fmt: skip


def bench_bars(bench: pd.DataFrame, *, width: int = 920) -> Figure:
    """What benchmarks measured: a panel per benchmark and metric, a bar per case; of a case the newest value.

    Raises:
        ValueError: no rows but those of profiles.
    """
    rows = bench[bench.name != PROFILE]
    if not len(rows):
        raise ValueError("bench: no rows but those of a profile")
    newest = rows.sort_values("run").drop_duplicates(["name", "case", "metric"], keep="last").sort_index()
    groups = [(key, group) for key, group in newest.groupby(["name", "metric", "unit"], sort=False, dropna=False)]
    heights = [HEAD_PX + BAR_PX * len(group) for _, group in groups]
    with styled():
        figure = new_figure(width, sum(heights))
        grid = figure.add_gridspec(len(groups), 1, height_ratios=heights)
        for number, ((name, metric, unit), group) in enumerate(groups):
            axes = figure.add_subplot(grid[number], title=f"{name}: {metric}{f' ({unit})' if unit else ''}")
            bars = axes.barh(group.case[::-1], group.value[::-1], height=0.6, color=SERIES[0])
            axes.bar_label(bars, [f"{value:.4g}" for value in group.value[::-1]], padding=6, color="#56606c")
            axes.set_xticks([])
            axes.margins(x=0.12)
            axes.grid(visible=False)
    return figure
