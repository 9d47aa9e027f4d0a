"""The command `longtake`: parses, then hands over to the verb's module, which is imported only then.

How it ends: `longtake.jobs.exit_codes`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
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


TOGETHER = {
    "tag note rename": "tags, a sentence, another name for a run",
    "rm gc du": "remove by name, or what is of no use; what takes how much",
    "tasks metrics sources mixers loggers": "what there is, or a card",
    "up down": "keep a Ray of this machine warm between verbs; end it",
    "jobs logs stop": "a cluster's jobs, what one has printed, its end",
}
"""Verbs that have one line of the root's help, which is a screen."""


class Verbs(TyperGroup):
    """The command's root, which lists its verbs by section, and whose help is a screen of 40 lines."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs, the name of each section before its first; the options are a line below."""
        left = max(len(section) for section in SECTIONS) + 2
        formatter.write("\n")
        for section, verbs in groupby(self.commands.values(), key=lambda verb: verb.rich_help_panel):  # type: ignore[attr-defined]
            for number, line in enumerate(_lines(list(verbs), formatter.width - left)):
                formatter.write(f"{section if not number else '':<{left}}{line}\n")
        options = [one for parameter in self.get_params(ctx) for one in parameter.opts if one.startswith("--")]
        formatter.write(f"\n{'options':<{left}}{', '.join(options)}\n")


NAMES = 11
"""Letters of the column of verbs."""


def _lines(verbs: list[Any], width: int) -> Iterator[str]:
    """The lines of a section: a verb each, or several that belong together."""
    first = {names.split()[0]: names for names in TOGETHER}
    others = {name for names in TOGETHER for name in names.split()[1:]}
    for verb in verbs:
        if names := first.get(verb.name):
            yield f"{', '.join(names.split())}: {TOGETHER[names]}"
        elif verb.name not in others:
            yield f"{verb.name:<{NAMES}}{verb.get_short_help_str(width - NAMES)}"


app = typer.Typer(
    cls=Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Video world models with long memory: collect, train, evaluate, compare.",
    epilog="Example: longtake demo. Each verb has examples: longtake VERB --help.",
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
