"""Verbs of clusters: a warm Ray of this machine, and other machines, where a verb runs and is looked after."""

from __future__ import annotations

from typing import Annotated, cast

import typer
from typer.core import TyperGroup

from longtake.jobs.verbs.options import Address, Format, JobId, Out, examples

app = typer.Typer()


@app.command(epilog=examples("longtake up"))
def up() -> None:
    """Keep a Ray of this machine warm between verbs.

    It listens on loopback alone and wants a token, which is in a file that only you can read. Verbs find it by
    themselves, one at a time, and say so where they pass over it: another code, folder, packages or variables.
    RAY_ADDRESS=local passes over it always."""
    from longtake.jobs.clusters import warm

    warm.up()


@app.command(epilog=examples("longtake down"))
def down(
    force: Annotated[bool, typer.Option("--force", help="Also while a verb works on it.")] = False,
) -> None:
    """End the Ray that longtake up keeps, and all it started."""
    from longtake.jobs.clusters import warm

    warm.down(force)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog=examples("longtake submit --detach train maze --store s3://BUCKET/PREFIX"),
)
def submit(
    context: typer.Context,
    line: Annotated[list[str], typer.Argument(metavar="VERB ARGS...", help="As after `longtake`.")],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job's end.")] = False,
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="CPUs for the verb's own process.")] = 0,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="GPUs for the verb's own process.")] = 0,
) -> None:
    """Run a verb on a cluster: options first, then the verb.

    Its log is printed; the exit code is the verb's."""
    from longtake.jobs.clusters import submit

    submit.main(cast(TyperGroup, context.find_root().command), line, address, detach, cpus, gpus)


@app.command(epilog=examples("longtake jobs"))
def jobs(address: Address = None, format_: Format = None, out: Out = None) -> None:
    """List the jobs of a cluster."""
    from longtake.jobs.clusters import submit

    submit.listing(address, format_, out)


@app.command(epilog=examples("longtake logs JOB --follow"))
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until its end, and end with its exit code.")] = False,
) -> None:
    """Print what a job on a cluster has printed."""
    from longtake.jobs.clusters import submit

    submit.logs(job, address, follow)


@app.command(epilog=examples("longtake stop JOB"))
def stop(job: JobId, address: Address = None) -> None:
    """Stop a job on a cluster."""
    from longtake.jobs.clusters import submit

    submit.stop(job, address)
