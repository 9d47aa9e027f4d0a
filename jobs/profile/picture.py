"""A profile as a picture: cost against frames, one line per model; counted above, measured below."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jobs.plots import LINE_PX, model_colors, new_figure, spread, styled
from jobs.profile.findings import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEYOND = 8
"""Times the longest length, up to where counted costs are drawn."""
Lines = dict[str, dict[int, float]]


def costs_figure(found: Findings, *, width: int = 1100, height: int = 760) -> Figure:
    """Operations and bytes of one more frame (counted), time and peak memory of a training step (measured)."""
    longest = BEYOND * max(found.config.frames)
    points = sorted({round(2 ** (i / 2)) for i in range(1 + int(2 * math.log2(longest)))} | {longest})
    sampler = found.config.sampler
    counted = {
        "one more frame, GFLOP (counted)": {
            name: {n: costs.frame_flops(n, sampler) / 1e9 for n in points} for name, costs in found.costs.items()
        },
        "memory carried by a stream, MB (counted)": {
            name: {n: costs.carried(n)["total"] / 1e6 for n in points} for name, costs in found.costs.items()
        },
    }
    measured: dict[str, Lines] = {"training step, s (measured)": {}, "training step, peak MB (measured)": {}}
    for name in found.costs:
        series = found.series(name, "train")
        measured["training step, s (measured)"][name] = {n: m.seconds or 0.0 for n, m in series.items()}
        measured["training step, peak MB (measured)"][name] = {n: (m.peak_bytes or 0) / 1e6 for n, m in series.items()}
    with styled():
        figure = new_figure(width, height)
        panels = {}
        for number, (title, lines) in enumerate({**counted, **measured}.items(), 1):
            axes = figure.add_subplot(2, 2, number, title=title, xscale="log", yscale="log")
            axes.set_xlabel("frames remembered" if number <= 2 else "frames of the clip")
            panels[axes] = _draw(axes, lines, found.own, marker="o" if number > 2 else "")
            _plain_ticks(axes)
        _name_lines(figure, panels)
    return figure


def _draw(axes: Axes, lines: Lines, own: str, marker: str) -> dict[str, float]:
    """Draw the lines; returns where each ends."""
    colors, ends = model_colors(list(lines)), {}
    for name, points in lines.items():
        if points:
            width = 2.6 if name == own else 1.6
            axes.plot(list(points), list(points.values()), color=colors[name], linewidth=width, marker=marker)
            ends[name] = list(points.values())[-1]
    return ends


def _plain_ticks(axes: Axes) -> None:
    """Numbers as people write them; more of them where an axis spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _name_lines(figure: Figure, panels: dict[Axes, dict[str, float]]) -> None:
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
