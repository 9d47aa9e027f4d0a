"""The command `longtake`: parses, then hands over to the verb's module, which is imported only then.

A UserError becomes one `error:` line per problem and exit code 2; so does a wrong verb or option. Any other
exception is a bug and keeps its trace (exit code 1).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from longtake import __version__
from longtake.errors import UserError
from longtake.jobs import cards, cluster
from longtake.jobs.cli_options import (
    STORE,
    Address,
    By,
    Columns,
    ConfigName,
    DatasetName,
    Draw,
    DryRun,
    Format,
    JobId,
    Out,
    Overrides,
    Plot,
    RunIds,
    Sort,
    StoreUri,
    Where,
    Wide,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Video world models with long memory: collect, train, evaluate, compare.",
    epilog="Start with: longtake demo. Each verb explains itself: longtake VERB --help.",
)


@app.command()
def collect(config: ConfigName, set_: Overrides = None, store: StoreUri = STORE, dry_run: DryRun = False) -> None:
    """Record episodes from an environment as a dataset of shards."""
    from longtake.jobs import collect

    collect.main(config, set_ or [], store, dry_run)


@app.command()
def ingest(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A format; `longtake sources` lists them.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or s3://BUCKET/PREFIX with the files.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the dataset to make.")],
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
) -> None:
    """Turn other people's episodes into a dataset of shards."""
    from longtake.jobs import ingest

    ingest.main(kind, path, name, set_ or [], store, dry_run)


@app.command()
def encode(
    dataset: DatasetName,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="RUN", help="A trained autoencoder's id or name, or a folder's path.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the dataset to make [default: DATASET-latents].")
    ] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
) -> None:
    """Turn a dataset's frames into latents of an autoencoder, as a dataset of its own."""
    from longtake.jobs import encode

    encode.main(dataset, tokenizer, name, set_ or [], store, dry_run)


@app.command()
def inspect(
    dataset: DatasetName,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", metavar="PNG", help="Contact sheet to write [default: DATASET.png]."),
    ] = None,
    preview: Annotated[
        str | None, typer.Option("--preview", metavar="MP4", help="Also write moving pictures of some episodes.")
    ] = None,
    store: StoreUri = STORE,
) -> None:
    """Print a dataset's manifest and write a contact sheet."""
    from longtake.jobs import inspect

    inspect.main(dataset, store, sheet, preview)


@app.command()
def verify(dataset: DatasetName, store: StoreUri = STORE) -> None:
    """Read every byte of a dataset and list what is damaged; exit code 1 if anything is."""
    from longtake.jobs import verify

    raise typer.Exit(verify.main(dataset, store))


@app.command()
def train(
    config: ConfigName,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with this run from its last checkpoint."),
    ] = None,
    fork: Annotated[
        bool, typer.Option("--fork", help="With --resume: go on as a new run, whose settings may be others.")
    ] = False,
) -> None:
    """Train a world model; a run that was interrupted goes on."""
    from longtake.jobs.train import command as train

    train.main(config, set_ or [], store, dry_run, resume, fork)


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or name, or latest.")],
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="A new folder.")],
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Of the checkpoint [default: last].")] = None,
    store: StoreUri = STORE,
) -> None:
    """Write a trained model as a folder: safetensors and a config, no Ray or DeepSpeed needed to read it."""
    from longtake.jobs import export

    export.main(run, out, step, store)


@app.command()
def sweep(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A YAML path or the name of a shipped one [default: blocks]."),
    ] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="ID", help="Go on with this sweep; only what has not ended is run."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: also try again what crashed, from its checkpoints.")
    ] = False,
) -> None:
    """Search a space of trainings for the best memory; bad ones are stopped early."""
    from longtake.jobs.sweep import command as sweep

    sweep.main(config, set_ or [], store, dry_run, resume, retry_failed)


@app.command()
def evaluate(
    config: ConfigName = "default",
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    runs: Annotated[str, typer.Option("--runs", metavar="latest|none|ID,ID", help="Whose checkpoints.")] = "latest",
    tasks: Annotated[str | None, typer.Option("--tasks", metavar="A,B", help="Only these tasks of the config.")] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Only N episodes: a look; kept apart from results."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Score checkpoints as they appear, until the runs end.")
    ] = False,
) -> None:
    """Score checkpoints on memory tasks; only what is not scored yet."""
    from longtake.jobs.evaluate import command as evaluate

    evaluate.main(config, set_ or [], store, dry_run, runs, tasks, limit, follow)


@app.command()
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
    store: StoreUri = STORE,
) -> None:
    """Print a table; scores as means unless --columns asks for rows.

    Means of scores come with 95 % intervals over episodes and never mix protocols.
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
    )


@app.command()
def runs(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Show this one, down to its config.")] = None,
    where: Where = None,
    format_: Format = None,
    out: Out = None,
    store: StoreUri = STORE,
) -> None:
    """List the runs (running, done, failed, stopped or lost), or show one."""
    from longtake.jobs.runs import command as runs

    runs.main(store, run, where=where, format=format_, out=out)


@app.command()
def compact(
    table: Annotated[list[str] | None, typer.Argument(metavar="TABLE...", help="Which tables [default: all].")] = None,
    store: StoreUri = STORE,
) -> None:
    """Make the many files of a table one, quick to read; safe at any time."""
    from longtake.jobs import compact

    compact.main(table or [], store)


@app.command()
def report(
    run: RunIds,
    out: Annotated[str | None, typer.Option("--out", metavar="HTML", help="The page to write.")] = None,
    store: StoreUri = STORE,
) -> None:
    """Write a page about runs or a sweep: tables, curves, films, picture strips."""
    from longtake.jobs.report import command as report

    report.main(run, store, out)


@app.command()
def diagnose(run: RunIds, store: StoreUri = STORE) -> None:
    """How far back models remember, what that costs, and what to change."""
    from longtake.jobs.diagnose import command as diagnose

    diagnose.main(run, store)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Which benchmarks; --dry-run tells of all.")
    ] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
) -> None:
    """Measure our parts beside others'; --set NAME.field=value changes a benchmark's settings."""
    from longtake.jobs.bench import command as bench

    bench.main(names or [], set_ or [], store, dry_run)


@app.command()
def profile(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A size (tiny, small, ...) or a training config.")],
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only; measure and keep nothing.")] = False,
    frames: Annotated[str, typer.Option("--frames", metavar="A,B", help="Lengths.")] = "8,32,128",
    families: Annotated[str | None, typer.Option("--families", metavar="A,B", help="Rivals [default: all].")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Limit of each measurement.")] = 10,
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GIB", min=0.01, help="To fit into [default: what is free].")
    ] = None,
    ceiling: Annotated[bool, typer.Option("--ceiling", help="Also try the longest clips that should fit.")] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="The picture [default: profile-CONFIG.png].")
    ] = None,
) -> None:
    """Where a model stops remembering, and what its rivals of the same size cost."""
    from longtake.jobs.profile import command as profile
    from longtake.jobs.profile.config import Limits

    limits = Limits(seconds=seconds, memory_gib=memory, ceiling=ceiling)
    profile.main(config, set_ or [], store, dry_run, frames, families, limits, out)


@app.command()
def demo(config: ConfigName = "demo", set_: Overrides = None, store: StoreUri = STORE, dry_run: DryRun = False) -> None:
    """All of it on this machine, within minutes."""
    from longtake.jobs import demo

    demo.main(config, set_ or [], store, dry_run)


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    line: Annotated[list[str], typer.Argument(metavar="VERB ARGS...", help="As after `longtake`.")],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job's end.")] = False,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="CPUs for the verb's own process.")] = 0,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs for the verb's own process.")] = 0,
) -> None:
    """Run a verb on a cluster: options first, then the verb; prints its log, ends with its exit code."""
    from longtake.jobs import submit

    submit.main(app, line, address, detach, cpus, gpus)


@app.command()
def jobs(address: Address = None, format_: Format = None, out: Out = None) -> None:
    """List the jobs of a cluster."""
    from longtake.jobs import submit

    submit.listing(address, format_, out)


@app.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until its end, and end with its exit code.")] = False,
) -> None:
    """Print what a job on a cluster has printed."""
    from longtake.jobs import submit

    submit.logs(job, address, follow)


@app.command()
def stop(job: JobId, address: Address = None) -> None:
    """Stop a job on a cluster."""
    from longtake.jobs import submit

    submit.stop(job, address)


app.add_typer(cards.app)
app.add_typer(cluster.app, name="cluster")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"longtake {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    try:
        code = app(args=arguments, prog_name="longtake", standalone_mode=False)
    except UserError as error:
        code = _complain(error.lines)
    except typer.TyperException as error:
        code = _complain([error.format_message()])
    except typer.Abort:
        code = 130  # Ctrl-C, as shells count it
    sys.exit(code)


def _complain(lines: Sequence[str]) -> int:
    print(*("error: " + " ".join(line.split("\n")) for line in lines), sep="\n", file=sys.stderr)
    return 2
