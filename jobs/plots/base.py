"""Plots: rows of the tables in, matplotlib figures out, and figures as files.

Models are solid, the same with their memory wiped dashed, with a stranger's context dash-dotted, all in one colour;
floors and oracle are dotted grey. Bands are 95 % intervals over episodes. Sizes are CSS pixels; text is 12 px at any
size of figure.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from longtake.evals.metrics.psnr import IDENTICAL_PSNR
from longtake.evals.registry import METRICS
from longtake.evals.task import STRANGER
from longtake.tables.schema import NO_RUN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from longtake.storage.store import Store

STYLE = Path(__file__).parent / "longtake.mplstyle"
ORACLE = "nearest_pose"
WIPED = "/wiped"
CEILING = "/reconstruction"
SERIES = ("#1f5fbf", "#b4530a", "#0b7265", "#7c3aed", "#be185d", "#4d6b0f")
INKS = {
    "#1d232b": "ink",
    "#56606c": "muted",
    "#66707c": "floor",
    "#c3c9d1": "axis",
    "#e4e7eb": "grid",
    **{color: f"series-{number}" for number, color in enumerate(SERIES, 1)},
}
"""Every colour of a figure, and the CSS variable that stands for it on a page."""
FLOOR_INK = "#66707c"
SYSTEM_NAMES = {
    "copy_last": "copy last frame",
    "context_mean": "context mean",
    ORACLE: "nearest pose (oracle)",
    ORACLE + STRANGER: "a stranger's view (chance)",
}
OFF_SCALE = {"psnr": 6.0, "ssim": 0.15}
"""An oracle further than this above everything else is named, not drawn: it would flatten the rest. So are the points
of a floor that are twice as far outside of all models."""
CODE_PX, CODE_LINE_PX = 7, 17  # a letter and a line of the command under a plot
FEWEST = 5  # episodes below which an interval is not drawn
LINE_PX = 16  # between two names
AROUND_LINES = 6  # what a panel has above and below its names: title, ticks, label
NARROW_PX = 600


@dataclass(frozen=True)
class Look:
    """How a system is drawn and called."""

    system: str
    name: str
    kind: Literal["model", "wiped", "stranger", "floor", "oracle", "ceiling"]
    color: str
    dash: Literal["solid", "dashed", "dashdot", "dotted"]

    @property
    def ink(self) -> str:
        """The CSS variable of its colour."""
        return INKS[self.color]


End = tuple[float, Look]
"""The last value of a line, and whose it is."""


def distinct(scores: pd.DataFrame) -> pd.DataFrame:
    """The newest checkpoint of each run; equal names are told apart by the end of the run's id."""
    rows = scores.assign(system=scores.system.astype(str), run=scores.run.astype(str))
    newest = rows.groupby(["run", "system", "task"]).checkpoint.transform("max")
    rows = rows[rows.checkpoint == newest].copy()
    of_runs = rows[rows.run != NO_RUN].drop_duplicates(["run", "system"])
    counts = of_runs.system.value_counts()
    clash = rows.system.isin(counts[counts > 1].index)
    rows.loc[clash, "system"] = [_with_run(*pair) for pair in zip(rows.system[clash], rows.run[clash], strict=True)]
    return rows


def _with_run(system: str, run: str) -> str:
    """`block_ssm/wiped` → `block_ssm k3f9/wiped`."""
    model, slash, wiped = system.partition("/")
    return f"{model} {run[-4:]}{slash}{wiped}"


def looks(scores: pd.DataFrame) -> dict[str, Look]:
    """The look of each system: models by name, each before its controls and ceiling, then floors, then oracle."""
    ours = scores.run == NO_RUN
    own = scores.system[~ours].astype(str).unique()
    models = sorted({name.partition("/")[0] for name in own})
    colors = model_colors(models)
    systems = []
    for model in models:
        if model in own:
            systems.append(Look(model, model, "model", colors[model], "solid"))
        if model + WIPED in own:
            systems.append(Look(model + WIPED, f"{model}, wiped", "wiped", colors[model], "dashed"))
        if model + STRANGER in own:
            look = Look(model + STRANGER, f"{model}, stranger's context", "stranger", colors[model], "dashdot")
            systems.append(look)
        if model + CEILING in own:
            systems.append(Look(model + CEILING, f"{model}, tokenizer alone", "ceiling", colors[model], "dotted"))
    floors = scores.system[ours].astype(str).unique()
    for floor in sorted(floors, key=lambda name: (name == ORACLE, name)):
        kind: Literal["oracle", "floor"] = "oracle" if floor == ORACLE else "floor"
        systems.append(Look(floor, SYSTEM_NAMES.get(floor, floor), kind, FLOOR_INK, "dotted"))
    return {look.system: look for look in systems}


def model_colors(models: list[str]) -> dict[str, str]:
    """A colour per model, by the order of their names, so that all plots of the same models agree."""
    return {model: SERIES[number % len(SERIES)] for number, model in enumerate(sorted(models))}


def psnr_curve(
    scores: pd.DataFrame,
    metric: str = "psnr",
    window: int | None = None,
    *,
    width: int = 920,
    height: int = 400,
    labels: bool = True,
) -> Figure:
    """A metric against distance: one panel per task, one line per system.

    Args:
        scores: rows of the `scores` table, of one protocol per task.
        window: frames that the models' windows reach back, layer upon layer; marked when given.
        height: of one panel; it is higher if its labels need that.
        labels: name each line at its right end; without, the caller shows a key.

    Raises:
        ValueError: no rows of this metric, or a task with rows of several protocols.
    """
    rows = scores[scores.metric == metric]
    if not len(rows):
        raise ValueError(f"metric: no {metric} among these scores")
    for task, group in rows.groupby("task", observed=True):
        if group.protocol.nunique() > 1:
            raise ValueError(f"protocol: {task} was scored under several, which cannot share a plot")
    rows = distinct(rows)
    tasks = sorted(rows.task.astype(str).unique())
    if labels:
        height = room_for(int(rows.groupby("task", observed=True).system.nunique().max()), height)
    with styled():
        figure = new_figure(width, height * len(tasks))
        ends = {}
        for number, task in enumerate(tasks, 1):
            axes = figure.add_subplot(len(tasks), 1, number)
            ends[axes] = _curves(axes, rows[rows.task == task], metric, window)
            name = METRICS[metric].heading
            axes.set_title(f"{name}, {task}" if len(tasks) > 1 else name)
        if labels:
            label_ends(figure, ends)
    return figure


def curve(scores: pd.DataFrame) -> pd.DataFrame:
    """Per system and distance: `mean` over episodes, `low`, `high` (95 %, Student's t), `episodes`."""
    from scipy.stats import t

    per_episode = scores.groupby(["system", "distance", "episode"], observed=True).value.mean()
    groups = per_episode.groupby(["system", "distance"], observed=True)
    means = groups.agg(["mean", "sem", "count"]).reset_index().rename(columns={"count": "episodes"})
    half = (means["sem"] * t.ppf(0.975, (means.episodes - 1).clip(lower=1))).fillna(0.0)
    return means.assign(low=means["mean"] - half, high=means["mean"] + half)


def _without_wild_bands(points: pd.DataFrame) -> pd.DataFrame:
    """Points of a few episodes without their bands, whose width says nothing and would squash the rest."""
    few = points.episodes < FEWEST
    return points.assign(low=points.low.where(~few, points["mean"]), high=points.high.where(~few, points["mean"]))


def _curves(axes: Axes, scores: pd.DataFrame, metric: str, window: int | None) -> list[End]:
    """Draw one panel; returns where its lines end."""
    points, styles = _without_wild_bands(curve(scores)), looks(scores)
    outside = _far_floors(points, styles, metric)
    shown, far = _off_scale(points[~outside], metric)
    low, high = float(shown.low.min()), float(shown.high.max())
    room = 0.06 * max(high - low, 0.01)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0, shown.distance.max())
    axes.set_xlabel(_said_below(shown, sorted({styles[name].name for name in points.system[outside]})))
    whole_ticks(axes)
    if window and window < shown.distance.max():
        _mark_window(axes, window)
    ends = []
    for look in reversed(styles.values()):
        line = shown[shown.system == look.system]
        if len(line):
            _line(axes, line, look)
            ends.append((float(line["mean"].iloc[-1]), look))
    if far is not None:
        value = f"{far:.0f} dB" if metric == "psnr" else f"{far:.2f}"
        axes.set_title(f"oracle: {value}, off the scale", loc="right", color=FLOOR_INK)
    return ends


def _far_floors(points: pd.DataFrame, styles: Mapping[str, Look], metric: str) -> pd.Series[bool]:
    """Which points of floors lie far outside of all models and controls.

    One episode that stands still makes a copied frame perfect, and its mean would squash everything else.
    """
    floor = points.system.map(lambda name: styles[name].kind in ("floor", "oracle"))
    others = points["mean"][~floor]
    if not len(others) or metric not in OFF_SCALE:
        return floor & False
    room = 2 * OFF_SCALE[metric]
    return floor & (points.system != ORACLE) & ~points["mean"].between(others.min() - room, others.max() + room)


def _said_below(points: pd.DataFrame, outside: Sequence[str]) -> str:
    """Of how many episodes the means are, why bands are missing, and what is not to be seen."""
    least, most = int(points.episodes.min()), int(points.episodes.max())
    words = [f"distance (frames), n = {least}" + (f" to {most}" if most > least else "") + " episodes"]
    if least < FEWEST:
        words.append(f"no band where fewer than {FEWEST} episodes have it")
    if outside:
        words.append(f"{' and '.join(outside)}: in part off the scale")
    return "; ".join(words)


def whole_ticks(axes: Axes) -> None:
    """Frames and steps are counted: no halves of them below a panel, however narrow it is."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def _off_scale(points: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, float | None]:
    """The points to draw, and the oracle's mean where it is left out.

    A frame that is the truth itself counts as 100 dB: such points (copy-last-frame, one step back) are off the scale.
    """
    if metric == "psnr":
        points = points[(points.system == ORACLE) | (points["mean"] < IDENTICAL_PSNR)]
    oracle = points.system == ORACLE
    rest = points[~oracle]
    if not oracle.any() or not len(rest):
        return points, None
    if points.high[oracle].max() <= rest.high.max() + OFF_SCALE.get(metric, np.inf):
        return points, None
    return rest, float(points["mean"][oracle].mean())


def _line(axes: Axes, line: pd.DataFrame, look: Look) -> None:
    alpha = {"model": 0.18, "wiped": 0.1}.get(look.kind, 0.07)
    axes.fill_between(line.distance, line.low, line.high, color=look.color, alpha=alpha, linewidth=0)
    width = {"model": 2.6, "wiped": 2.0}.get(look.kind, 1.8)
    axes.plot(line.distance, line["mean"], color=look.color, linestyle=look.dash, linewidth=width)


def _mark_window(axes: Axes, window: int) -> None:
    axes.axvspan(0, window, color="#e4e7eb", alpha=0.5, linewidth=0, zorder=0)
    axes.axvline(window, color="#56606c", linewidth=1)
    axes.annotate(
        f"reach of windows, {window} frames", (window, 0), xycoords=axes.get_xaxis_transform(), xytext=(6, 7),
        textcoords="offset points", color="#56606c",
    )  # fmt: skip


def room_for(names: int, height: int) -> int:
    """The height of a panel at whose right end so many names stand, one below the other; at least `height`."""
    return max(height, LINE_PX * (names + AROUND_LINES))


def label_ends(figure: Figure, panels: Mapping[Axes, list[End]]) -> None:
    """Names at the right ends of the lines, pushed apart until none covers another."""
    figure.draw_without_rendering()  # the layout says how high a panel is; names change only its width
    for axes, ends in panels.items():
        low, high = axes.get_ylim()
        step = LINE_PX * (high - low) / axes.get_window_extent().height
        ends = sorted(ends, key=lambda end: end[0])
        places = spread([value for value, _ in ends], step, low, high)
        for place, (value, look) in zip(places, ends, strict=True):
            shift = (place - value) / step * LINE_PX
            axes.annotate(
                look.name, (1, value), xycoords=axes.get_yaxis_transform(), xytext=(8, shift),
                textcoords="offset points", va="center_baseline", color=look.color, annotation_clip=False,
                fontweight="bold" if look.kind == "model" else "normal",
            )  # fmt: skip


def spread(values: list[float], step: float, low: float, high: float) -> list[float]:
    """Places near sorted values, at least `step` apart, inside [low, high] where they fit."""
    groups: list[list[float]] = []  # [sum of wanted first places, members]

    def top(group: list[float]) -> float:
        return _first(group, step, low, high) + group[1] * step

    for value in values:
        groups.append([value, 1])
        while len(groups) > 1 and top(groups[-2]) > _first(groups[-1], step, low, high):
            total, members = groups.pop()
            groups[-1][0] += total - members * groups[-1][1] * step
            groups[-1][1] += members
    return [_first(group, step, low, high) + i * step for group in groups for i in range(int(group[1]))]


def _first(group: list[float], step: float, low: float, high: float) -> float:
    """Where the first of a group of neighbours goes, so that all are as near to their values as can be."""
    total, members = group
    return max(low, min(total / members, high - (members - 1) * step))


@contextmanager
def styled() -> Iterator[None]:
    """Our style for figures made and written inside."""
    import matplotlib

    with matplotlib.rc_context(fname=STYLE):
        yield


def new_figure(width: int, height: int) -> Figure:
    """An empty figure of a size in pixels; no pyplot, so nothing outlives it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_under(figure: Figure, command: str) -> None:
    """Write under a figure the command that draws it again; the figure grows by that, the rest stays as it is."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = figure.get_size_inches() * 72
    lines = broken(command, int(width / CODE_PX))
    foot = CODE_LINE_PX * (lines.count("\n") + 1)
    figure.set_size_inches(width / 72, (height + foot) / 72)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, foot / (height + foot), 1, height / (height + foot)))
    figure.text(4 / width, 4 / (height + foot), lines, family="monospace", fontsize=11, color=FLOOR_INK, va="bottom")


def broken(command: str, letters: int) -> str:
    """A command on lines of at most so many letters, each but the last ended by a backslash, as a shell has it."""
    lines = textwrap.wrap(command, letters - 2, break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)


def save_in_store(figure: Figure, store: Store, name: str) -> str:
    """Write a figure as PNG to `reports/NAME` of a store, a folder or a bucket; returns where it lies."""
    with styled():
        figure.savefig(data := io.BytesIO(), format="png", dpi=144, facecolor="white")
    store.write_bytes(f"reports/{name}", data.getvalue())
    return f"{store.uri}/reports/{name}"


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (2x), SVG or PDF, by the name's ending, on white."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        figure.savefig(path, dpi=144, facecolor="white")
    return path
