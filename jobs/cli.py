"""The command `longtake`: parses, then hands over to the verb's module, which is imported only then.

How it ends: `longtake.jobs.exit_codes`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo, TyperInfo

from longtake import __version__
from longtake.cluster import preemption
from longtake.jobs.clusters import cluster
from longtake.jobs.exit_codes import ended
from longtake.jobs.verbs import clusters, data, lookup, runs, scores, training, worlds

SECTIONS = {
    "data": data.app,
    "models": training.app,
    "worlds": worlds.app,
    "answers": scores.app,
    "store": runs.app,
    "look up": lookup.app,
    "clusters": clusters.app,
}
"""The verbs by what they are about, as the help lists them."""


class Verbs(TyperGroup):
    """The command's root, which lists its verbs by section: a line each, and a screen in all."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs, the name of each section before its first."""
        rows = []
        for section, verbs in groupby(self.commands.values(), key=lambda verb: verb.rich_help_panel):  # type: ignore[attr-defined]
            rows += [(section if not number else "", verb) for number, verb in enumerate(verbs)]
        left = max(len(section) for section, _ in rows) + 2
        names = max(len(str(verb.name)) for _, verb in rows) + 2
        limit = formatter.width - left - names
        formatter.write("\n")
        for section, verb in rows:
            formatter.write(f"{section:<{left}}{verb.name:<{names}}{verb.get_short_help_str(limit)}\n")


app = typer.Typer(
    cls=Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Video world models with long memory: collect, train, evaluate, compare.",
    epilog="Start with: longtake demo. Each verb explains itself: longtake VERB --help.",
)
clusters.app.add_typer(cluster.app, name="cluster")
for section, verbs in SECTIONS.items():
    registered: list[CommandInfo | TyperInfo] = [*verbs.registered_commands, *verbs.registered_groups]
    for info in registered:
        info.rich_help_panel = section
    app.add_typer(verbs)


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
    preemption.handle()
    sys.exit(ended(lambda: app(args=arguments, prog_name="longtake", standalone_mode=False)))
