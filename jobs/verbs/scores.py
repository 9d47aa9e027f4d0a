"""Verbs of answers: models are scored, and tables, pages and pictures tell of it."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import (
    STORE,
    Brief,
    By,
    Columns,
    ConfigName,
    Draw,
    DryRun,
    Format,
    Out,
    Overrides,
    Plot,
    RunIds,
    Sort,
    StoreUri,
    Where,
    Wide,
    examples,
)

app = typer.Typer()


@app.command(
    epilog=examples(
        "longtake evaluate memory --runs latest", "longtake evaluate demo --runs A,B --tasks retrieval --limit 4"
    )
)
def evaluate(
    config: ConfigName = "default",
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    brief: Brief = False,
    runs: Annotated[str, typer.Option("--runs", metavar="RUN,RUN|none", help="Whose checkpoints.")] = "latest",
    tasks: Annotated[str | None, typer.Option("--tasks", metavar="A,B", help="Only these tasks of the config.")] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Only N episodes: a look; kept apart from results."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Score checkpoints as they appear, until the runs end.")
    ] = False,
) -> None:
    """Score checkpoints on memory tasks.

    Only what is not scored yet is run."""
    from longtake.jobs.evaluate import command as evaluate

    evaluate.main(config, set_ or [], store, dry_run or brief, runs, tasks, limit, follow, brief=brief)


@app.command(
    epilog=examples(
        "longtake results scores --by task,system --sort task,-mean",
        'longtake results steps --where "loss < 0.1" --plot losses.png',
    )
)
def results(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="scores, runs, steps, bench or trials.")] = "scores",
    where: Where = None,
    by: By = None,
    sort: Sort = None,
    columns: Columns = None,
    format_: Format = None,
    out: Out = None,
    plot: Plot = None,
    draw: Draw = None,
    horizon: Annotated[
        bool, typer.Option("--horizon", help="Of scores: for how many frames each model remembers.")
    ] = False,
    wide: Wide = False,
    every: Annotated[
        int | None,
        typer.Option("--every", min=1, metavar="N", help="Of steps: each Nth, with what was last measured held-out."),
    ] = None,
    sums: Annotated[
        str | None, typer.Option("--sum", metavar="A,B", help="With --by: sums of these beside the means.")
    ] = None,
    store: StoreUri = STORE,
) -> None:
    """Print a table: rows, means, a plot.

    Scores are means with 95 % intervals over episodes, unless --columns asks for rows; protocols and datasets are never
    mixed. --by and --columns also take settings of the runs: config.model.window.
    """
    from longtake.jobs.results import command as results

    results.main(
        table,
        store,
        where=where,
        by=by,
        sort=sort,
        columns=columns,
        format=format_,
        out=out,
        plot=plot,
        draw=draw,
        horizon=horizon,
        wide=wide,
        every=every,
        sums=sums,
    )


@app.command(
    epilog=examples("longtake compare latest context_mean --beyond 6", "longtake compare RUN RUN --metric ssim")
)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, or a system such as NAME/wiped or copy_last.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    metric: Annotated[str, typer.Option("--metric", metavar="NAME", help="`longtake metrics` lists them.")] = "psnr",
    beyond: Annotated[int, typer.Option("--beyond", min=0, metavar="K", help="Only frames farther than K.")] = 0,
    where: Where = None,
    format_: Format = None,
    out: Out = None,
    store: StoreUri = STORE,
) -> None:
    """Compare two runs or systems, paired, with an interval.

    A line per task and protocol that both were scored under: the means, A - B with its 95 % interval, episodes.
    """
    from longtake.jobs.results import compare

    compare.main(a, b, store, metric=metric, beyond=beyond, where=where, format=format_, out=out)


@app.command(epilog=examples("longtake report latest --out page.html"))
def report(
    run: RunIds,
    out: Annotated[
        str | None, typer.Option("--out", metavar="HTML", help="The page [default: STORE/reports/RUN.html].")
    ] = None,
    store: StoreUri = STORE,
) -> None:
    """Write a page about runs or a sweep.

    It holds tables, curves, films and picture strips."""
    from longtake.jobs.report import command as report

    report.main(run, store, out)


@app.command(epilog=examples("longtake diagnose latest"))
def diagnose(run: RunIds, store: StoreUri = STORE) -> None:
    """How far back models remember, and what to change.

    Beside it stands what that costs."""
    from longtake.jobs.diagnose import command as diagnose

    diagnose.main(run, store)


@app.command(epilog=examples("longtake reproduce retrieval --dry-run", "longtake reproduce ablation --scale small"))
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="retrieval, reasoning or ablation, or a YAML path.")],
    scale: Annotated[
        str, typer.Option("--scale", metavar="SCALE", help="micro: two cores; small and paper: GPUs.")
    ] = "micro",
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
) -> None:
    """Make a table of the paper, from data to page."""
    from longtake.jobs.reproduce import command as reproduce

    reproduce.main(name, scale, set_ or [], store, dry_run)
