"""Verbs of trained worlds: exported, played, and served."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import STORE, RunName, StoreUri, examples

app = typer.Typer()
LOCAL = "127.0.0.1"
"""This machine alone."""


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


@app.command(
    epilog=examples(
        "longtake play latest",
        "longtake play RUN --context 16 --start 64",
        "longtake play --serve http://127.0.0.1:8000",
    )
)
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
    service: Annotated[
        str | None, typer.Option("--serve", metavar="URL", help="Of a service that holds the world: longtake serve.")
    ] = None,
    store: StoreUri = STORE,
) -> None:
    """Play a trained world with keys, in a page."""
    from longtake.jobs.play import command as play
    from longtake.models.config import SamplerConfig

    play.main(run, store, port, context, start, SamplerConfig(steps=steps, context_noise=context_noise), service)


@app.command(epilog=examples("longtake serve latest", "longtake serve RUN --min-replicas 1 --max-replicas 4"))
def serve(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or name, or latest; or an exported folder.")
    ] = "latest",
    host: Annotated[str, typer.Option("--host", help="Address that is listened to; there is no encryption.")] = LOCAL,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    token_file: Annotated[
        str | None, typer.Option("--token-file", metavar="FILE", help="[default: ~/.longtake/serve_token].")
    ] = None,
    min_replicas: Annotated[int, typer.Option("--min-replicas", min=1, help="Processes with the model.")] = 1,
    max_replicas: Annotated[int, typer.Option("--max-replicas", min=1, help="As many when many play.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1024, help="Most streams of a forward pass.")] = 32,
    held: Annotated[int, typer.Option("--held", min=1, help="Sessions that a replica has in memory.")] = 128,
    idle: Annotated[float, typer.Option("--idle", min=1, help="Seconds after which one leaves memory.")] = 300.0,
    cpus: Annotated[float, typer.Option("--cpus", min=0.1, help="Of each replica.")] = 1.0,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="Of each replica.")] = 0.0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising calls a frame.")] = 2,
    context_noise: Annotated[
        float, typer.Option("--context-noise", min=0, max=1, help="At which a frame enters the memory.")
    ] = 0.1,
    store: StoreUri = STORE,
) -> None:
    """Serve a trained world to a team, on Ray Serve."""
    from longtake.jobs.serve import command as serve

    serve.main(
        run,
        store,
        host=host,
        port=port,
        token=token_file,
        replicas=(min_replicas, max_replicas),
        batch=batch,
        held=held,
        idle_s=idle,
        cpus=cpus,
        gpus=gpus,
        steps=steps,
        context_noise=context_noise,
    )
