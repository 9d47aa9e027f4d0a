"""The options and arguments that verbs of the command line share."""

from __future__ import annotations

from typing import Annotated

import typer

RUN_NAMES = "an id or its beginning, a name (its newest run), latest, or best."
"""How a run is named wherever one is: platform/longtake/tables/find.py."""

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting; may be repeated.")
]
StoreUri = Annotated[
    str,
    typer.Option("--store", metavar="URI", envvar="LONGTAKE_STORE", help="A folder or s3://BUCKET/PREFIX."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the config and the plan; touch nothing.")]
Brief = Annotated[bool, typer.Option("--brief", help="As --dry-run, and of the config only what is not the default.")]
ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML path or the name of a shipped config.")]
Where = Annotated[str | None, typer.Option("--where", metavar="QUERY", help="Rows to keep, such as: metric == 'psnr'")]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="table, csv, md, json or parquet."),
]
Out = Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write there instead of printing.")]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="A,B", help="Means by these columns; scores: by protocol, always."),
]
Sort = Annotated[str | None, typer.Option("--sort", metavar="A,-B", help="Order by these columns; - for falling.")]
Columns = Annotated[
    str | None,
    typer.Option("--columns", metavar="A,B", help="Only these columns of the rows; `all` for all."),
]
Wide = Annotated[bool, typer.Option("--wide", help="Of scores: a line per system, a column per metric, as in papers.")]
Plot = Annotated[
    str | None,
    typer.Option("--plot", metavar="FILE", help="Draw scores, steps, trials or bench: .png, .svg or .pdf."),
]
Draw = Annotated[
    str | None,
    typer.Option(
        "--draw",
        metavar="PLOT",
        help="Which plot: of steps losses or state, of trials history, space, importances or price.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard [default: $RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265].",
    ),
]
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="Name of a dataset in the store.")]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN...", help=f"Of runs or a sweep: {RUN_NAMES}")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help=f"A run: {RUN_NAMES}")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id; `longtake jobs` lists them.")]

STORE = "store"
"""The store where none is given: a folder of that name here."""


def examples(*lines: str) -> str:
    """The end of a verb's help: lines to type."""
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])
