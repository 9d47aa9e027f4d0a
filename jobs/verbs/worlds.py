"""Verbs of trained worlds: exported, and played."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import STORE, RunName, StoreUri, examples

app = typer.Typer()


@app.command(epilog=examples("longtake export latest folder", "longtake export latest folder --push OWNER/NAME"))
def export(
    run: RunName,
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="A new folder.")],
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Of the checkpoint [default: last].")] = None,
    license_: Annotated[
        str, typer.Option("--license", metavar="ID", help="Of the weights, as the hub writes it.")
    ] = "mit",
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload it to the hub too.")] = None,
    store: StoreUri = STORE,
) -> None:
    """Write a trained model as a folder.

    It holds safetensors, a config and a card; no Ray or DeepSpeed is needed to read it, see longtake.World."""
    from longtake.jobs.export import command as export

    export.main(run, out, step, store, license_, push)


@app.command(epilog=examples("longtake play latest", "longtake play RUN --context 16 --start 64"))
def play(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or name, or latest; or an exported folder.")
    ] = "latest",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of this machine; 0: a free one.")] = 0,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Frames shown first [default: half of the training's].")
    ] = None,
    start: Annotated[int, typer.Option("--start", min=0, help="First frame shown of an episode.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising calls a frame.")] = 2,
    context_noise: Annotated[
        float, typer.Option("--context-noise", min=0, max=1, help="At which a frame enters the memory.")
    ] = 0.1,
    store: StoreUri = STORE,
) -> None:
    """Play a trained world with keys, in a page."""
    from longtake.jobs.play import command as play

    play.main(run, store, port, context, start, steps, context_noise)
