"""`longtake cluster check FILE` and `longtake cluster token`: what to do before `ray up`."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.errors import UserError
from longtake.jobs.verbs.options import examples

if TYPE_CHECKING:
    from longtake.cluster.spec import ClusterFile

TOKEN = "~/.ray/auth_token"

app = typer.Typer(help="Look over a cluster's file before ray up. Make its token.")


@app.command(epilog=examples("longtake cluster check cluster.yaml"))
def check(
    path: Annotated[str, typer.Argument(metavar="FILE", help="Ray's launcher's, or KubeRay's.")] = "cluster.yaml",
) -> None:
    """What a cluster's file makes and costs per hour, and everything that is unset or wrong in it."""
    from longtake.cluster.check import notes, problems
    from longtake.cluster.spec import read

    file = read(Path(path))
    print(groups(file))
    print(costs(file))
    for line in notes(file):
        print(f"note: {line}")
    if wrong := problems(file):
        raise UserError(*(f"{path}: {line}" for line in wrong))
    print(f"{path} is ready")


def groups(file: ClusterFile) -> str:
    """A line for each group: its name, how many nodes, what each is, has and costs."""
    rows: list[tuple[str, ...]] = [("group", "nodes", "machine", "market", "CPU", "GPU", "USD/hour")]
    for group in file.groups:
        count = f"{group.least}" if group.least == group.most else f"{group.least}-{group.most}"
        has = ("" if number is None else f"{number:g}" for number in (group.cpus, group.gpus))
        price = "" if group.usd_per_hour is None else f"{group.usd_per_hour:.3f}"
        rows.append((group.name, count, group.machine, group.market, *has, price))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)


def costs(file: ClusterFile) -> str:
    """What the cluster costs per hour with nothing to do, and with every group full."""
    idle, full = (file.usd_per_hour(full=full) for full in (False, True))
    if idle is None or full is None:
        return "USD per hour: unknown, the file has no prices for all of its groups"
    return (
        f"USD per hour: {idle:.2f} idle, {full:.2f} full; a node that has nothing to do ends after "
        f"{file.idle_minutes:g} minutes"
    )


@app.command(epilog=examples("longtake cluster token"))
def token(
    path: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to; never over another.")] = TOKEN,
) -> None:
    """Make a cluster's token in a file that only you can read; it is never printed."""
    place = Path(path).expanduser()
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # a running cluster would be locked out by a new one
        raise UserError(
            f"{place} is there already: a running cluster may know it; remove it first, or give --out"
        ) from None
    with contextlib.closing(os.fdopen(descriptor, "w")) as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask is
        file.write(secrets.token_hex(32))
    print(f"a token is in {place} (mode 600)")
