"""Memory horizons of the models in the `scores` table: as a table, as a plot, and as a sentence for a page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.evals.memory_horizon import MARGIN_DB, TASK, WIPED, Horizon, memory_horizon
from longtake.jobs.plots.base import FEWEST, OFF_SCALE, distinct, looks, new_figure, styled, whole_ticks
from longtake.jobs.report.claims import CALLED
from longtake.tables.schema import NO_RUN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("system", "run", "checkpoint", "protocol", "horizon", "low", "high", "reach", "lost_to", "episodes")
PANEL_PX = 260


def horizons(scores: pd.DataFrame) -> list[Horizon]:
    """The horizon of every model among the scores of one protocol, by the newest checkpoint of each run.

    Raises:
        ValueError: see `memory_horizon`.
    """
    rows = distinct(scores[scores.task == TASK])
    systems = set(rows.system)
    models = [look.system for look in looks(rows).values() if look.kind == "model"]
    return [memory_horizon(rows, model) for model in models if model + WIPED in systems]


def without_control(scores: pd.DataFrame) -> list[str]:
    """Models that were never scored with their memory wiped, such as one of others without `forget`."""
    rows = distinct(scores[scores.task == TASK])
    models = [look.system for look in looks(rows).values() if look.kind == "model"]
    return [model for model in models if model + WIPED not in set(rows.system)]


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """A line per model and protocol: its horizon in frames, with the 95 % interval, and how far was measured.

    Raises:
        UserError: no scores of retrieval, or a model whose rivals were not scored.
    """
    import pandas as pd

    rows = scores[scores.task == TASK]
    if not len(rows[rows.run != NO_RUN]):
        raise UserError(f"a memory horizon is of {TASK}, and no model is scored on it here: longtake evaluate")
    lines = []
    for protocol, group in rows.groupby("protocol", observed=True):
        here = distinct(group)
        for model in without_control(group):
            print(f"note: {model} has no horizon: it was never scored with its memory wiped", file=sys.stderr)
        about = here[here.run != NO_RUN].drop_duplicates("system").set_index("system")
        for line in _told(group):
            run, step = about.loc[line.system, "run"], about.loc[line.system, "checkpoint"]
            ends = (line.frames, line.low, line.high, line.reach, line.lost_to or "none", line.episodes)
            lines.append((line.system, run, step, protocol, *ends))
    if not lines:
        raise UserError(
            f"a horizon needs the PSNR of {without_control(rows)[0]}/wiped too: longtake evaluate scores both"
        )
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _told(scores: pd.DataFrame) -> list[Horizon]:
    try:
        return horizons(scores)
    except ValueError as error:
        raise UserError(f"{error}: longtake evaluate scores them all") from error


def sentence(horizon: Horizon) -> str:
    """What a reader may quote."""
    rival = CALLED.get(horizon.lost_to or "", "itself with its memory wiped")
    facts = f"({horizon.reach} measured, 95 % interval {horizon.low} to {horizon.high}, n = {horizon.episodes})"
    if horizon.lost_to is None:
        return f"remembers for all of the {horizon.reach} frames {facts}"
    if horizon.frames == 0:
        return f"shows no memory: {rival} is as good from the start {facts}"
    return f"remembers for {horizon.frames} frames, then {rival} is as good {facts}"


def horizon_curve(scores: pd.DataFrame, *, width: int = 920, height: int = PANEL_PX) -> Figure:
    """PSNR above the best rival against distance, one panel per model, its horizon marked.

    Raises:
        ValueError: scores of several protocols, or rivals that are missing.
    """
    systems = horizons(scores)
    if not systems:
        raise ValueError(f"horizon: none of {', '.join(without_control(scores))} was scored with its memory wiped")
    styles = looks(distinct(scores[scores.task == TASK]))
    with styled():
        figure = new_figure(width, height * len(systems))
        for number, horizon in enumerate(systems, 1):
            axes = figure.add_subplot(len(systems), 1, number)
            _panel(axes, horizon, styles[horizon.system].color)
    return figure


def _panel(axes: Axes, horizon: Horizon, color: str) -> None:
    if horizon.episodes >= FEWEST:
        axes.fill_between(horizon.distances, horizon.lead_low, horizon.lead_high, color=color, alpha=0.18, linewidth=0)
        # A rival that stands still is perfect: its band reaches to 100 dB, and would squash the line.
        room = 2 * OFF_SCALE["psnr"]
        axes.set_ylim(
            max(horizon.lead_low.min(), horizon.lead.min() - room),
            min(horizon.lead_high.max(), horizon.lead.max() + room),
        )
    axes.plot(horizon.distances, horizon.lead, color=color, linewidth=2.4)
    axes.axhline(MARGIN_DB, color="#56606c", linewidth=1)
    axes.axvspan(horizon.low, horizon.high, color="#e4e7eb", alpha=0.7, linewidth=0, zorder=0)
    axes.axvline(horizon.frames, color="#56606c", linewidth=1.6)
    axes.set_xlim(0, horizon.reach)
    few = f"; no band of fewer than {FEWEST}" if horizon.episodes < FEWEST else ""
    axes.set_xlabel(f"distance (frames), n = {horizon.episodes} episodes{few}")
    whole_ticks(axes)
    caption = f"{horizon.frames} frames [{horizon.low}, {horizon.high}]"
    axes.set_title(f"{horizon.system}: PSNR (dB) above the best of copy last, context mean and itself wiped")
    axes.set_title(f"horizon {caption}", loc="right", color="#56606c")
