"""Verbs of what a store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import STORE, Format, Out, RunName, StoreUri, Where, examples

app = typer.Typer()
Removing = Annotated[bool, typer.Option("--dry-run", help="Say what it would free; remove nothing.")]


@app.command(epilog=examples("longtake runs --where \"status == 'failed'\"", "longtake runs latest"))
def runs(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Show this one, down to its config.")] = None,
    where: Where = None,
    tag: Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Only those with this tag.")] = None,
    format_: Format = None,
    out: Out = None,
    store: StoreUri = STORE,
) -> None:
    """List the runs, or show one.

    A run is running, done, failed, stopped, lost or removed."""
    from longtake.jobs.runs import command as runs

    runs.main(store, run, where=where, tag=tag, format=format_, out=out)


@app.command(epilog=examples("longtake compact scores steps"))
def compact(
    table: Annotated[list[str] | None, typer.Argument(metavar="TABLE...", help="Which tables [default: all].")] = None,
    store: StoreUri = STORE,
) -> None:
    """Make the many files of a table one. Safe at any time."""
    from longtake.jobs.store import compact

    compact.main(table or [], store)


@app.command(epilog=examples("longtake datasets"))
def datasets(format_: Format = None, out: Out = None, store: StoreUri = STORE) -> None:
    """List the datasets."""
    from longtake.jobs.datasets import command as datasets

    datasets.main(store, format_, out)


@app.command(epilog=examples("longtake tag latest good seed-study", "longtake tag RUN good --remove"))
def tag(
    run: RunName,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="Letters, digits and . _ -")],
    remove: Annotated[bool, typer.Option("--remove", help="Take them away.")] = False,
    store: StoreUri = STORE,
) -> None:
    """Give a run tags: longtake runs --tag TAG finds it."""
    from longtake.jobs.store import notes

    notes.tag(run, tags, store, remove)


@app.command(epilog=examples('longtake note latest "lr too high from step 400 on"'))
def note(
    run: RunName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="In place of the note before; empty: none.")],
    store: StoreUri = STORE,
) -> None:
    """Write a sentence beside a run."""
    from longtake.jobs.store import notes

    notes.note(run, text, store)


@app.command(epilog=examples("longtake rename latest maze-wide"))
def rename(
    run: RunName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and . _ -")],
    store: StoreUri = STORE,
) -> None:
    """Call a run otherwise. Its scores keep their system."""
    from longtake.jobs.store import notes

    notes.rename(run, name, store)


@app.command(epilog=examples("longtake rm RUN mazes --dry-run", "longtake rm SWEEP"))
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Datasets, runs, sweeps (with their trials).")],
    store: StoreUri = STORE,
    dry_run: Removing = False,
) -> None:
    """Remove the files of datasets, runs and sweeps.

    What others depend on is refused. Rows in the tables stay, and say that their run is removed.
    """
    from longtake.jobs.store import rm

    rm.main(names, store, dry_run)


@app.command(epilog=examples("longtake gc --dry-run"))
def gc(store: StoreUri = STORE, dry_run: Removing = False) -> None:
    """Remove what nobody can use: halves that kills left."""
    from longtake.jobs.store import gc

    gc.main(store, dry_run)


@app.command(epilog=examples("longtake du", "longtake du --format csv"))
def du(format_: Format = None, out: Out = None, store: StoreUri = STORE) -> None:
    """Show how many bytes each thing takes."""
    from longtake.jobs.store import du

    du.main(store, format_, out)
