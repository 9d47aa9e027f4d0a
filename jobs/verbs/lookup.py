"""Verbs that look up what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import STORE, StoreUri, examples

app = typer.Typer()
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Print the whole card of this one.")]


@app.command(epilog=examples("longtake explain train.model.window", "longtake explain lr", "longtake explain"))
def explain(
    field: Annotated[
        str | None, typer.Argument(metavar="FIELD", help="Such as train.model.window [default: all].")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them as docs/reference.md.")] = False,
) -> None:
    """Explain a field of a config, a section, or all fields.

    Prints meaning, unit, default, what is allowed, who sets it, and whether a run that goes on may have another.
    """
    from longtake.jobs.lookup import explain

    explain.main(field, markdown)


@app.command(epilog=examples("longtake configs", "longtake configs train/demo-block-ssm"))
def configs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one, such as train/tiny.")] = None,
) -> None:
    """List the configs that are shipped, or print one.

    In a file of your own, wherever it lies, each can be a base: `base: longtake:train/tiny`.
    """
    from longtake.jobs.lookup import shipped_configs

    shipped_configs.main(name)


@app.command(epilog=examples("longtake doctor", "longtake doctor --no-ray --store s3://BUCKET/PREFIX"))
def doctor(
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Also start a Ray, which takes its time.")] = True,
    store: StoreUri = STORE,
) -> None:
    """Look whether this machine has what is needed.

    A line each for code, packages, torch, GPUs, memory, disk, store and Ray, with what to do. Exit code 1: a problem.
    """
    from longtake.jobs.lookup import doctor

    raise typer.Exit(doctor.main(store, ray))


@app.command(epilog=examples("longtake tasks", "longtake tasks retrieval"))
def tasks(name: Name = None) -> None:
    """List what an evaluation can ask, or print one's card."""
    from longtake.jobs.lookup import cards

    cards.show("task", cards.tasks(), name)


@app.command(epilog=examples("longtake metrics", "longtake metrics psnr"))
def metrics(name: Name = None) -> None:
    """List what answers are measured by, or print one's card."""
    from longtake.jobs.lookup import cards

    cards.show("metric", cards.metrics(), name)


@app.command(epilog=examples("longtake sources", "longtake sources texture-torus"))
def sources(name: Name = None) -> None:
    """List where episodes come from, or print one's card."""
    from longtake.jobs.lookup import cards

    cards.show("source", cards.sources(), name)


@app.command(epilog=examples("longtake mixers", "longtake mixers delta"))
def mixers(name: Name = None) -> None:
    """List what a layer can mix tokens by, or print one's card."""
    from longtake.jobs.lookup import cards

    cards.show("mixer", cards.mixers(), name)


@app.command(epilog=examples("longtake loggers", "longtake loggers mlflow"))
def loggers(name: Name = None) -> None:
    """List loggers of a training, or print one's card."""
    from longtake.jobs.lookup import cards

    cards.show("logger", cards.loggers(), name)
