"""Verbs of data: episodes come in, are looked at and verified."""

from __future__ import annotations

from typing import Annotated

import typer

from longtake.jobs.verbs.options import STORE, Brief, ConfigName, DatasetName, DryRun, Overrides, StoreUri, examples

app = typer.Typer()


@app.command(
    epilog=examples("longtake collect doom-maze-demo", "longtake collect texture-torus --set episodes=64 --dry-run")
)
def collect(
    config: ConfigName, set_: Overrides = None, store: StoreUri = STORE, dry_run: DryRun = False, brief: Brief = False
) -> None:
    """Record episodes of an environment as a dataset."""
    from longtake.jobs.collect import command as collect

    collect.main(config, set_ or [], store, dry_run or brief, brief=brief)


@app.command(
    epilog=examples(
        "longtake ingest lerobot FOLDER --name robots", "longtake ingest teco s3://BUCKET/PREFIX --name mazes --dry-run"
    )
)
def ingest(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A format; `longtake sources` lists them.")],
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="A folder or s3://BUCKET/PREFIX with the files.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the dataset to make.")] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print what KIND is, and its own settings.")] = False,
) -> None:
    """Turn other people's episodes into a dataset of shards."""
    from longtake.jobs.ingest import command as ingest

    ingest.main(kind, path, name, set_ or [], store, dry_run, explain)


@app.command(epilog=examples("longtake encode doom-maze --tokenizer autoencoder"))
def encode(
    dataset: DatasetName,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="RUN", help="A trained autoencoder's run, or a folder's path.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the dataset to make [default: DATASET-latents].")
    ] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
) -> None:
    """Turn the frames of a dataset into latents. They are a dataset of their own."""
    from longtake.jobs.encode import command as encode

    encode.main(dataset, tokenizer, name, set_ or [], store, dry_run)


@app.command(epilog=examples("longtake inspect doom-maze-demo --preview walks.mp4"))
def inspect(
    dataset: DatasetName,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", metavar="PNG", help="Contact sheet to write [default: STORE/reports/DATASET.png]."),
    ] = None,
    preview: Annotated[
        str | None, typer.Option("--preview", metavar="MP4", help="Also write moving pictures of some episodes.")
    ] = None,
    store: StoreUri = STORE,
) -> None:
    """Print a dataset's manifest and write a contact sheet."""
    from longtake.jobs.datasets import inspect

    inspect.main(dataset, store, sheet, preview)


@app.command(epilog=examples("longtake verify doom-maze-demo"))
def verify(
    dataset: DatasetName,
    store: StoreUri = STORE,
    against: Annotated[
        str | None, typer.Option("--against", metavar="PATH", help="Also compare with the source at PATH, read anew.")
    ] = None,
) -> None:
    """Read every byte of a dataset. List what is damaged: then the exit code is 1."""
    from longtake.jobs.datasets import verify

    raise typer.Exit(verify.main(dataset, store, against))
