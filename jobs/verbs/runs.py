"""Verbs of what a store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import STORE, Format, Out, StoreUri, Where, examples

app = typer.Typer()


@app.command(epilog=examples("longtake runs --where \"status == 'failed'\"", "longtake runs latest"))
def runs(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Show this one, down to its config.")] = None,
    where: Where = None,
    format_: Format = None,
    out: Out = None,
    store: StoreUri = STORE,
) -> None:
    """List the runs, or show one.

    A run is running, done, failed, stopped or lost."""
    from longtake.jobs.runs import command as runs

    runs.main(store, run, where=where, format=format_, out=out)


@app.command(epilog=examples("longtake compact scores steps"))
def compact(
    table: Annotated[list[str] | None, typer.Argument(metavar="TABLE...", help="Which tables [default: all].")] = None,
    store: StoreUri = STORE,
) -> None:
    """Make the many files of a table one. Safe at any time."""
    from longtake.jobs import compact

    compact.main(table or [], store)
