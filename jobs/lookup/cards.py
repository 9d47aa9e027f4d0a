"""`longtake tasks|metrics|sources|mixers|loggers`: what there is, a line each from its card, or one card whole.

A card is a docstring. Those of tasks, mixers and loggers are read from their files, without running them: that would
load PyTorch, or packages that are not installed. What is found so is what their registries find; a test holds the two
together.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from pydantic.fields import FieldInfo

from longtake import registry
from longtake.config import choices_of
from longtake.errors import UserError, unknown


@dataclass(frozen=True)
class Card:
    """What a name stands for; `group` is the heading under which it is listed, where there are several."""

    name: str
    text: str
    group: str = ""

    @property
    def sentence(self) -> str:
        """The first sentence."""
        paragraph = " ".join(self.text.split("\n\n")[0].split())
        return re.split(r"(?<=[.?!])\s", paragraph, maxsplit=1)[0]


def show(what: str, cards: Sequence[Card], name: str | None) -> None:
    """Print a line for each card, or one name's card whole. Raises UserError for a name that is not there."""
    if name is None:
        print("\n".join(listing(cards)))
        return
    texts = list(dict.fromkeys(card.text for card in cards if card.name == name))
    if not texts:
        raise UserError(unknown(what, name, {card.name for card in cards}))
    print("\n\n".join(texts))


def listing(cards: Sequence[Card]) -> Iterator[str]:
    """The lines of a list, under the headings of their groups."""
    width = max(len(card.name) for card in cards)
    group = ""
    for card in cards:
        if card.group != group:
            group = card.group
            yield f"{group}:"
        yield f"{'  ' if group else ''}{card.name:<{width}}  {card.sentence}"


def explain(kind: str) -> str:
    """A format's card, and the settings of its own: `source.NAME`, what it may be, what it is when not given, what it
    means. Raises UserError for a format that is not there."""
    from longtake.sources.formats import formats

    if kind not in formats():
        raise UserError(unknown("format", kind, formats()))
    card = next(card.text for card in sources() if card.name == kind)
    fields = formats()[kind].config.model_fields
    lines = [_setting(f"source.{name}", info) for name, info in fields.items() if name != "kind"]
    return "\n".join([card, "", "Settings, each --set NAME=VALUE:", *lines])


def _setting(name: str, info: FieldInfo) -> str:
    choices = " or ".join(map(str, choices_of(info.annotation)))
    default = "required" if info.is_required() else "none" if info.default is None else str(info.default)
    given = f"{choices}; {default}" if choices else default
    return f"  {name} ({given}): {info.description}"


def tasks() -> list[Card]:
    """Every file of evals/tasks/ that holds a `TASK`."""
    from longtake.evals import tasks

    return [Card(name, text) for name, text, defined in files(tasks) if "TASK" in defined]


def mixers() -> list[Card]:
    """Every file of models/mixers/ that holds a `MIXER`, then every one that holds a `LOCAL`."""
    from longtake.models import mixers

    groups = {"MIXER": "over any distance, a layer's `mixer`", "LOCAL": "over a few frames, a layer's `local`"}
    cards = list(files(mixers))
    return [
        Card(name, text, group) for kind, group in groups.items() for name, text, defined in cards if kind in defined
    ]


def sources() -> list[Card]:
    """The environments that `collect` plays, then the formats that `ingest` reads."""
    from longtake.sources import environments, formats

    groups = {
        "played, by `longtake collect`": environments.modules(),
        "read, by `longtake ingest`": formats.modules(),
    }
    return [
        Card(name, inspect.cleandoc(module.__doc__ or ""), group)
        for group, modules in groups.items()
        for name, module in sorted(modules.items())
    ]


def metrics() -> list[Card]:
    """Every metric, in the order in which they are shown: from its file of evals/metrics/, or as its task says."""
    from longtake.evals import metrics
    from longtake.evals.metric import TaskMetric
    from longtake.evals.registry import METRICS

    texts = {name: text for name, text, _ in files(metrics)}
    return [
        Card(name, metric.card if isinstance(metric, TaskMetric) else texts[name]) for name, metric in METRICS.items()
    ]


def loggers() -> list[Card]:
    """Every file of jobs/train/loggers/ that holds a `LOGGER`."""
    from longtake.jobs.train import loggers

    return [Card(name.replace("_", "-"), text) for name, text, defined in files(loggers) if "LOGGER" in defined]


def files(package: ModuleType) -> Iterator[tuple[str, str, set[str]]]:
    """Name, docstring and top-level names of every file of a package, which are not imported."""
    for name, path in registry.files(package).items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield name, ast.get_docstring(tree) or "", set(assigned(tree))


def assigned(tree: ast.Module) -> Iterator[str]:
    """Names that a file gives values to at its top."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
