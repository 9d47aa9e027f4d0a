"""`longtake results`: print a table, or means of it, for people or for programs.

Scores are shown as means with standard error and 95 % intervals over episodes (Student's t, and bootstrap), one line
per protocol: scores of different protocols are never averaged.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from longtake.errors import UserError, unknown
from longtake.jobs.display.show import check_output, say_empty, show
from longtake.jobs.results.config_columns import with_settings
from longtake.jobs.results.summary import _require, at_multiples, means, summary
from longtake.storage.store import Store, open_store
from longtake.tables import schema
from longtake.tables.scores import SUMMARY_BY, require_alike

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    Plot = Callable[[pd.DataFrame, Store], Figure]


EXPLAINED = (
    "mean: over episodes, of each one's mean over frames. se: its standard error. ci95: half of the 95 % interval "
    "(Student's t). low, high: the 95 % bootstrap interval. Lines of unlike protocol or dataset are not comparable."
)


def main(
    table: str,
    store: str,
    *,
    where: str | None = None,
    by: str | None = None,
    sort: str | None = None,
    columns: str | None = None,
    format: str | None = None,
    out: str | None = None,
    plot: str | None = None,
    draw: str | None = None,
    horizon: bool = False,
    wide: bool = False,
    every: int | None = None,
    sums: str | None = None,
) -> None:
    """The command: read, condense, order, show; with `plot` also draw the rows, by the plot that `draw` names."""
    check_output(format, out)
    if wide and (table != "scores" or horizon or columns):
        raise UserError("--wide is of scores, a column per metric: leave out --horizon and --columns")
    if horizon and (table != "scores" or by or columns):
        raise UserError("--horizon is of scores, and makes its own columns: leave out --by and --columns")
    if plot and table in schema.KEYS and table not in PLOTS:
        raise UserError(f"--plot draws {', '.join(PLOTS)}; there is no plot of {table}")
    if draw and (horizon or not plot):
        raise UserError(f"--draw {draw}: it names a plot of --plot FILE, and --horizon has one of its own")
    if draw and draw not in PLOTS.get(table, {}):
        raise UserError(f"--draw: {unknown(f'plot of {table}', draw, PLOTS.get(table, {}))}")
    if by and columns:
        raise UserError("--by and --columns exclude each other: --by makes its own columns")
    if every and table != "steps":
        raise UserError("--every N is of steps")
    if sums and (not by or table == "scores"):
        raise UserError("--sum stands beside the means of --by, of other tables than scores")
    place = open_store(store)
    place.require_exists()
    rows = place.table(table, where=where)
    if every:
        rows = at_multiples(rows, every)
    rows = with_settings(place, rows, [*_names(by), *_names(columns)])
    rows = schema.with_columns(table, rows, [*_names(by), *_names(columns)])
    if rows.empty:
        say_empty(table, place, where)
    elif plot:
        kept = rows[rows.task == "retrieval"] if horizon else rows
        if table == "scores":
            require_alike(place, kept)
        command = plot_command(table, place, where, plot, draw, horizon)
        picture(_plot(table, draw, horizon), kept, place, plot, command)
    if wide:
        frame = _wide(place, rows, _names(by))
    else:
        frame = _horizons(rows) if horizon else condense(table, rows, _names(by), _names(columns), _names(sums))
    show(order(frame, _names(sort)), format, out)
    if table == "scores" and format is None and not (out or columns or horizon or rows.empty) and sys.stdout.isatty():
        print(EXPLAINED)


def _horizons(rows: pd.DataFrame) -> pd.DataFrame:
    from longtake.jobs.results import memory_horizons

    return rows if rows.empty else memory_horizons.table(rows)


def _wide(store: Store, rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    from longtake.jobs.results.wide import side_by_side

    return rows if rows.empty else side_by_side(store, rows, by or SUMMARY_BY)


def condense(
    table: str, rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str], sums: Sequence[str] = ()
) -> pd.DataFrame:
    """The rows with the asked columns, or means by `by`; of scores the summary unless columns are asked.

    Raises UserError, one line per column that is not there.
    """
    if columns:
        names = list(rows.columns) if list(columns) == ["all"] else list(columns)
        _require(rows, names)
        return rows.reindex(columns=names)
    if table == "scores":
        return summary(rows, by or SUMMARY_BY)
    return means(rows, by, sums) if by else rows


def picture(plot: Plot, rows: pd.DataFrame, store: Store, path: str, command: str) -> None:
    """A plot of some rows as a file, and under it the command that draws it again.

    Raises UserError for what cannot share a plot or cannot be written.
    """
    from longtake.jobs.plots import base as plots

    try:
        figure = plot(rows, store)
        plots.write_under(figure, command)
        plots.save(figure, path)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}; choose rows with --where") from error
    except OSError as error:
        raise UserError(f"--plot {path}: cannot be written: {error.strerror}") from error


def draw_scores(store: Store, rows: pd.DataFrame, path: str, where: str) -> None:
    """Scores against distance as a file, and under it the command that draws it again.

    Raises UserError for what cannot share a plot or cannot be written.
    """
    require_alike(store, rows)
    picture(_plot_scores, rows, store, path, plot_command("scores", store, where, path))


def _plot(table: str, draw: str | None, horizon: bool) -> Plot:
    if horizon:
        return _plot_horizon
    return PLOTS[table][draw] if draw else next(iter(PLOTS[table].values()))


def plot_command(
    table: str, store: Store, where: str | None, path: str, draw: str | None = None, horizon: bool = False
) -> str:
    """What draws the same picture again, whatever the environment says."""
    chosen = ["--where", where] if where else []
    named = ["--draw", draw] if draw else []
    what = [table, "--horizon"] if horizon else [table]
    return " ".join(map(_quote, ["longtake", "results", *what, *chosen, "--plot", path, *named, "--store", store.uri]))


def _quote(argument: str) -> str:
    """As a shell takes it, in double quotes: queries are full of single ones, and there a line may be broken."""
    if shlex.quote(argument) == argument:
        return argument
    return '"' + re.sub(r'([\\"$`])', r"\\\1", argument) + '"'


def _plot_scores(rows: pd.DataFrame, store: Store) -> Figure:
    """The only metric against distance, or PSNR among several; how far the models' windows reach is marked."""
    from longtake.jobs.plots import base as plots
    from longtake.jobs.report.gather import known_runs, windows_reach

    metrics = sorted(rows["metric"].unique())
    if len(metrics) > 1 and "psnr" not in metrics:
        raise ValueError(f"metric: {', '.join(metrics)} cannot share a plot")
    window = windows_reach(known_runs(store, set(rows["run"])))
    return plots.psnr_curve(rows, metrics[0] if len(metrics) == 1 else "psnr", window)


def _plot_horizon(rows: pd.DataFrame, _: Store) -> Figure:
    from longtake.jobs.results import memory_horizons

    return memory_horizons.horizon_curve(rows)


def _names_of(rows: pd.DataFrame, store: Store) -> dict[str, str]:
    """What each run of some rows is called: by its id, where its name is not known."""
    from longtake.jobs.report.gather import known_runs

    ids = [str(run) for run in rows["run"].unique()]
    known = {run.id: run.name for run in known_runs(store, ids)}
    return {run: known.get(run, run) for run in ids}


def _plot_losses(rows: pd.DataFrame, store: Store) -> Figure:
    from longtake.jobs.plots import steps

    return steps.training_curve(rows, _names_of(rows, store))


def _plot_state(rows: pd.DataFrame, store: Store) -> Figure:
    from longtake.jobs.plots import steps

    return steps.drift_curve(rows, _names_of(rows, store))


def _plot_history(rows: pd.DataFrame, _: Store) -> Figure:
    from longtake.jobs.plots import trials

    return trials.history_curve(rows)


def _plot_space(rows: pd.DataFrame, _: Store) -> Figure:
    from longtake.jobs.plots import trials

    return trials.space_curve(rows)


def _plot_importances(rows: pd.DataFrame, _: Store) -> Figure:
    from longtake.jobs.plots import trials

    return trials.importance_bars(rows)


def _plot_price(rows: pd.DataFrame, _: Store) -> Figure:
    from longtake.jobs.plots import trials

    return trials.price_curve(rows)


def _plot_bench(rows: pd.DataFrame, _: Store) -> Figure:
    """Cost against frames of a profile alone, bars of what else there is."""
    from longtake.jobs.plots import bench

    return bench.costs_curve(rows) if set(rows["name"]) == {bench.PROFILE} else bench.bench_bars(rows)


PLOTS: dict[str, dict[str, Plot]] = {
    "scores": {"distance": _plot_scores},
    "steps": {"losses": _plot_losses, "state": _plot_state},
    "trials": {
        "history": _plot_history,
        "space": _plot_space,
        "importances": _plot_importances,
        "price": _plot_price,
    },
    "bench": {"costs": _plot_bench},
}
"""The plots of each table by their names; the first is drawn where none is named."""


def order(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Sorted by columns; a name that begins with - falls."""
    plain = [name.removeprefix("-") for name in names]
    _require(frame, plain)
    if not names:
        return frame
    return frame.sort_values(plain, ascending=[not name.startswith("-") for name in names], kind="stable")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
