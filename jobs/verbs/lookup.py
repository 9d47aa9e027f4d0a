"""Verbs that look up what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import examples

app = typer.Typer()
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Print the whole card of this one.")]


@app.command(epilog=examples("longtake tasks", "longtake tasks retrieval"))
def tasks(name: Name = None) -> None:
    """List what an evaluation can ask, or print one's card."""
    from longtake.jobs import cards

    cards.show("task", cards.tasks(), name)


@app.command(epilog=examples("longtake metrics", "longtake metrics psnr"))
def metrics(name: Name = None) -> None:
    """List what answers are measured by, or print one's card."""
    from longtake.jobs import cards

    cards.show("metric", cards.metrics(), name)


@app.command(epilog=examples("longtake sources", "longtake sources texture-torus"))
def sources(name: Name = None) -> None:
    """List where episodes come from, or print one's card."""
    from longtake.jobs import cards

    cards.show("source", cards.sources(), name)


@app.command(epilog=examples("longtake mixers", "longtake mixers delta"))
def mixers(name: Name = None) -> None:
    """List what a layer can mix tokens by, or print one's card."""
    from longtake.jobs import cards

    cards.show("mixer", cards.mixers(), name)
