"""Plots of the table `steps`: losses with the stages of the curriculum, and how the carried state drifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from longtake.jobs.plots.base import (
    FLOOR_INK,
    NARROW_PX,
    SERIES,
    End,
    Look,
    label_ends,
    model_colors,
    new_figure,
    room_for,
    styled,
    whole_ticks,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = {"loss": "training loss", "val_loss": "held-out loss, fixed noise"}
DRIFT = {"state_std": "spread of the carried state", "state_rank": "its effective rank"}
"""What of the state is drawn: prefixes of columns, the rest of which is the layer."""
MARKED = 40  # curves with fewer points show them
BINS = 300  # of a training curve: more points than pixels say nothing
LAYERS = len(SERIES)  # that one panel can tell apart


def training_curve(
    steps: pd.DataFrame, runs: Mapping[str, str], *, width: int = 920, height: int = 300, labels: bool = True
) -> Figure:
    """Training loss and held-out loss against step, side by side (one above the other below 600 px).

    Upright lines: from there on clips are of another length.

    Args:
        steps: rows of the `steps` table.
        runs: run id → the name to show.

    Raises:
        ValueError: none of the runs has a step.
    """
    rows = _of_runs(steps, runs)
    colors = model_colors(list(runs.values()))
    looks = {run: Look(run, name, "model", colors[name], "solid") for run, name in runs.items()}
    narrow = width < NARROW_PX
    if labels:
        height = room_for(len(runs), height)
    with styled():
        figure = new_figure(width, height * (2 if narrow else 1))
        ends = {}
        for number, (column, title) in enumerate(LOSSES.items(), 1):
            axes = figure.add_subplot(*((2, 1) if narrow else (1, 2)), number, title=title, xlabel="step")
            ends[axes] = _losses(axes, rows, column, looks)
            axes.set_xlim(0, max(1, rows.step.max()))
            whole_ticks(axes)
            axes.margins(y=0.08)
            _mark_stages(axes, rows)
        if labels:
            label_ends(figure, ends)
    return figure


def drift_curve(
    steps: pd.DataFrame, runs: Mapping[str, str], *, width: int = 920, height: int = 260, labels: bool = True
) -> Figure:
    """Spread and rank of each layer's state after the held-out clips, against step: a line of panels per run.

    Of more layers than colours some are shown, evenly spaced.

    Raises:
        ValueError: none of the runs notes its state.
    """
    rows = _of_runs(steps, runs)
    drifting = {run: name for run, name in runs.items() if state_layers(rows[rows.run == run])}
    if not drifting:
        raise ValueError(f"state: none of {', '.join(runs)} noted one; only layers that scan have it")
    narrow = width < NARROW_PX
    shape = (2 * len(drifting), 1) if narrow else (len(drifting), 2)
    with styled():
        figure = new_figure(width, height * shape[0])
        ends, number = {}, 0
        for run, name in drifting.items():
            for prefix, title in DRIFT.items():
                number += 1
                axes = figure.add_subplot(*shape, number, title=f"{name}: {title}", xlabel="step")
                ends[axes] = _state(axes, rows[rows.run == run], prefix)
                axes.set_xlim(0, max(1, rows.step.max()))
                whole_ticks(axes)
                axes.margins(y=0.08)
        if labels:
            label_ends(figure, ends)
    return figure


def state_layers(rows: pd.DataFrame) -> list[str]:
    """The layers of a run that noted their state, in order; of many, as many as can be told apart."""
    prefix = next(iter(DRIFT)) + "."
    noted = [str(name) for name in rows.columns if str(name).startswith(prefix) and rows[name].notna().any()]
    layers = sorted((name.removeprefix(prefix) for name in noted), key=_in_order)
    if len(layers) <= LAYERS:
        return layers
    return [layers[round(i)] for i in np.linspace(0, len(layers) - 1, LAYERS)]


def layer_looks(layers: list[str]) -> dict[str, Look]:
    """The look of each layer: `layers.3.ssm` is called layer 3."""
    looks = {}
    for number, layer in enumerate(layers):
        name = " ".join(["layer", *(part for part in layer.split(".") if part not in ("layers", "ssm"))])
        looks[layer] = Look(layer, name, "floor", SERIES[number % len(SERIES)], "solid")
    return looks


def _in_order(layer: str) -> list[tuple[bool, int, str]]:
    """layers.10 after layers.9."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in layer.split(".")]


def _of_runs(steps: pd.DataFrame, runs: Mapping[str, str]) -> pd.DataFrame:
    rows = steps[steps.run.isin(list(runs))]
    if not len(rows):
        raise ValueError(f"steps: no row of {', '.join(runs)}")
    return rows


def _losses(axes: Axes, rows: pd.DataFrame, column: str, runs: Mapping[str, Look]) -> list[End]:
    """Draw one column of every run; returns where the lines end."""
    return [end for run, look in runs.items() for end in _line(axes, rows[rows.run == run], column, look)]


def _state(axes: Axes, rows: pd.DataFrame, prefix: str) -> list[End]:
    """Draw one statistic of every layer; returns where the lines end."""
    layers = layer_looks(state_layers(rows)).items()
    return [end for layer, look in layers for end in _line(axes, rows, f"{prefix}.{layer}", look)]


def _line(axes: Axes, rows: pd.DataFrame, column: str, look: Look) -> list[End]:
    """Draw one column; returns where it ends, if there is anything of it."""
    line = _binned(rows, column)
    if not len(line):
        return []
    marker = "o" if len(line) < MARKED else ""
    axes.plot(line.step, line[column], color=look.color, linewidth=1.8, marker=marker, markersize=4, clip_on=not marker)
    return [(float(line[column].iloc[-1]), look)]


def _mark_stages(axes: Axes, rows: pd.DataFrame) -> None:
    """Where the length of clips changes; nothing for trainings with one length."""
    if "clip_frames" not in rows:
        return
    marks: set[tuple[int, int]] = set()
    for _, run in rows.dropna(subset=["clip_frames"]).sort_values("step").groupby("run", observed=True):
        begins = run[run.clip_frames.ne(run.clip_frames.shift())]
        if len(begins) > 1:
            marks |= {(int(step), int(frames)) for step, frames in zip(begins.step, begins.clip_frames, strict=True)}
    for step, frames in sorted(marks):
        if step:
            axes.axvline(step, color=FLOOR_INK, linewidth=1)
        axes.annotate(
            f"{frames} frames", (step, 1), xycoords=axes.get_xaxis_transform(), xytext=(4, -2),
            textcoords="offset points", color=FLOOR_INK, va="top",
        )  # fmt: skip


def _binned(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The curve of one column as means over at most `BINS` stretches of steps."""
    if column not in rows:
        return rows.iloc[:0]
    values = rows[["step", column]].dropna().sort_values("step")
    if len(values) <= BINS:
        return values
    place = np.arange(len(values)) * BINS // len(values)
    return values.groupby(place).mean()
