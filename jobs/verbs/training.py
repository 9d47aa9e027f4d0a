"""Verbs of models: trained, searched for, and measured."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longtake.jobs.verbs.options import STORE, Brief, ConfigName, DryRun, Overrides, StoreUri, examples

app = typer.Typer()


def _first(help: str) -> Any:
    """The config of a verb that may also go on with what was begun, and then needs none."""
    return typer.Argument(metavar="CONFIG", help=help)


def _resume(metavar: str, help: str) -> Any:
    """What to go on with."""
    return typer.Option("--resume", metavar=metavar, help=help)


@app.command(
    epilog=examples(
        "longtake train demo-block-ssm --set steps=4000 --set seed=1",
        "longtake train --resume RUN",
        "longtake train --resume RUN --fork --set steps=6000",
    )
)
def train(
    config: Annotated[str | None, _first("A YAML path or a shipped one's name; with --resume the run's own.")] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    brief: Brief = False,
    resume: Annotated[str | None, _resume("RUN", "Go on with this run from its last checkpoint.")] = None,
    fork: Annotated[
        bool, typer.Option("--fork", help="With --resume: go on as a new run, whose settings may be others.")
    ] = False,
) -> None:
    """Train a world model, or go on with a run."""
    from longtake.jobs.train import command as train

    train.main(config, set_ or [], store, dry_run or brief, resume, fork, brief=brief)


@app.command(epilog=examples("longtake sweep blocks --dry-run", "longtake sweep --resume latest --retry-failed"))
def sweep(
    config: Annotated[str | None, _first("A YAML path or the name of a shipped one [default: blocks].")] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
    brief: Brief = False,
    resume: Annotated[str | None, _resume("SWEEP", "Go on with this sweep; only what has not ended is run.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: also try again what crashed, from its checkpoints.")
    ] = False,
) -> None:
    """Search a space of trainings; bad ones are stopped early."""
    from longtake.jobs.sweep import command as sweep

    sweep.main(config, set_ or [], store, dry_run or brief, resume, retry_failed, brief=brief)


@app.command(epilog=examples("longtake profile tiny --frames 8,32,128 --families block_ssm,causal_full"))
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
        str | None,
        typer.Option("--out", metavar="FILE", help="The picture [default: STORE/reports/profile-CONFIG.png]."),
    ] = None,
) -> None:
    """Where a model stops remembering; what its rivals cost.

    The rivals are of the same size."""
    from longtake.jobs.profile import command as profile
    from longtake.jobs.profile.config import Limits

    limits = Limits(seconds=seconds, memory_gib=memory, ceiling=ceiling)
    profile.main(config, set_ or [], store, dry_run, frames, families, limits, out)


@app.command(epilog=examples("longtake bench scan --set scan.repetitions=3"))
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Which benchmarks; --dry-run tells of all.")
    ] = None,
    set_: Overrides = None,
    store: StoreUri = STORE,
    dry_run: DryRun = False,
) -> None:
    """Measure our parts beside others'.

    --set NAME.field=value changes a benchmark's settings."""
    from longtake.jobs.bench import command as bench

    bench.main(names or [], set_ or [], store, dry_run)


@app.command(epilog=examples("longtake demo"))
def demo(config: ConfigName = "demo", set_: Overrides = None, store: StoreUri = STORE, dry_run: DryRun = False) -> None:
    """All of it on this machine, within minutes."""
    from longtake.jobs import demo

    demo.main(config, set_ or [], store, dry_run)
