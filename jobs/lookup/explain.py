"""`longtake explain [FIELD]`: what a field of a config means, its unit, its default, what is allowed, who sets it.

All of it is read from the config classes: a field's docstring or description is its meaning, the last words of which,
in brackets, are its unit. docs/reference.md is the same for reading: `make reference` writes it.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from longtake.config import members, shipped_settings
from longtake.errors import UserError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

CONFIGS = Path(__file__).parents[1] / "configs"
ROOTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "train": (
        ("world_model", "longtake.jobs.train.config", "WorldModelTraining"),
        ("autoencoder", "longtake.jobs.train.config", "AutoencoderTraining"),
    ),
    "evaluate": (("", "longtake.jobs.evaluate.config", "EvaluateConfig"),),
    "sweep": (("", "longtake.jobs.sweep.config", "SweepConfig"),),
    "collect": (("", "longtake.jobs.collect.command", "CollectConfig"),),
    "ingest": (("", "longtake.jobs.ingest.command", "IngestConfig"),),
    "encode": (("", "longtake.jobs.encode.command", "EncodeConfig"),),
    "demo": (("", "longtake.jobs.demo", "DemoConfig"),),
}
"""The configs of the verbs: of each kind its name, the module and the class."""
OPTIONS = "train.model.layers.options"
"""Whose fields are those of a mixer, which only PyTorch can tell."""
UNIT = re.compile(r"\s*\[([^\[\]]+)\]$")
SET_BY = 6
"""Shipped configs that are named beside a field."""
TAGS = ("kind", "source")
"""Fields that say which kind of section it is."""


@dataclass(frozen=True)
class Entry:
    """One field: its path, which kinds of config have it (none: all), and what is known of it."""

    path: str
    meaning: str
    unit: str
    default: str
    allowed: str
    section: bool = False
    kinds: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The last word of its path."""
        return self.path.rpartition(".")[2]

    @property
    def sentence(self) -> str:
        """Its meaning with its unit."""
        return self.meaning + (f" [{self.unit}]" if self.unit else "")


def main(path: str | None, markdown: bool = False) -> None:
    """The command: one field, the fields of a section, or all of them."""
    if markdown:
        print(reference(), end="")
        return
    wanted = ".".join(part for part in (path or "").split(".") if not part.isdigit())
    known = entries(options=wanted.startswith(OPTIONS) or OPTIONS.endswith(f".{wanted}"))
    if not wanted:
        print("\n".join(tree(known)))
        return
    entries_named = find(known, wanted)
    print("\n\n".join("\n".join(_card(entry, known)) for entry in entries_named))


# --- reading the classes ------------------------------------------------------------------------------------


def entries(options: bool = False) -> list[Entry]:
    """Every field of every config, in the order of the classes; `options`: those of the mixers too, by PyTorch."""
    known: list[Entry] = []
    for root, kinds in ROOTS.items():
        several = [(kind, list(_walk(_class(module, name), root))) for kind, module, name in kinds]
        known += _joined(several)
    if options:
        at = next(number for number, entry in enumerate(known) if entry.path == OPTIONS) + 1
        known[at:at] = _mixer_options()
    return known


def _class(module: str, name: str) -> type[BaseModel]:
    schema: type[BaseModel] = getattr(import_module(module), name)
    return schema


def _joined(several: list[tuple[str, list[Entry]]]) -> list[Entry]:
    """The fields of several kinds of a section: what is the same in all is said once, without their names."""
    merged: dict[Entry, list[str]] = {}
    for kind, fields in several:
        for entry in fields:
            merged.setdefault(entry, []).append(kind)
    named = ((entry, kinds) for entry, kinds in merged.items())
    return [entry if len(kinds) == len(several) else replace(entry, kinds=tuple(kinds)) for entry, kinds in named]


def _walk(schema: type[BaseModel], path: str) -> Iterator[Entry]:
    """A section's fields, each with those below it."""
    for name, info in schema.model_fields.items():
        here = f"{path}.{name}"
        sections = list(_sections(info.annotation))
        yield _entry(here, info, bool(sections))
        below = [(_kind(section), list(_walk(section, here))) for section in sections]
        yield from _joined(below)


def _entry(path: str, info: FieldInfo, section: bool) -> Entry:
    meaning = " ".join((info.description or "").split())
    unit = UNIT.search(meaning)
    meaning = UNIT.sub("", meaning).rstrip(".")
    if meaning and meaning.split()[0].isalpha():
        meaning = meaning[0].upper() + meaning[1:]
    meaning += "." * bool(meaning)
    return Entry(path, meaning, unit[1] if unit else "", _default(info), _allowed(info), section)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of sections that an annotation holds, by itself or in a list or under names."""
    from pydantic import BaseModel

    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member
        elif get_origin(member) in (list, tuple, dict):
            yield from _sections(get_args(member)[-1])


def _kind(section: type[BaseModel]) -> str:
    """What a section calls itself among others."""
    tags = (section.model_fields[tag].default for tag in TAGS if tag in section.model_fields)
    return str(next(tags, section.__name__))


def _mixer_options() -> list[Entry]:
    from longtake.models.mixers import mixers

    return _joined([(name, list(_walk(kind.Options, OPTIONS))) for name, kind in sorted(mixers().items())])


# --- in words -----------------------------------------------------------------------------------------------


def _default(info: FieldInfo) -> str:
    from pydantic import BaseModel

    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, list) and any(isinstance(one, BaseModel) for one in value):
        value = [one.model_dump(mode="json", exclude_none=True) for one in value]
    return "none" if value is None else value if isinstance(value, str) and value else json.dumps(value)


def _allowed(info: FieldInfo) -> str:
    """What a field takes: its types, and the limits of numbers and lists."""
    limits = {name: getattr(one, name) for one in info.metadata for name in _LIMITS if hasattr(one, name)}
    return _type(info.annotation, limits)


_LIMITS = {"ge": "from", "gt": "above", "le": "to", "lt": "below", "min_length": "at least", "max_length": "at most"}
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "none"}


def _type(annotation: Any, limits: dict[str, Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _limited(_WORDS[annotation], {} if annotation is bool else limits)
    if origin is Literal:
        return ", ".join(str(one) for one in arguments)
    if hasattr(annotation, "__metadata__"):
        own = {name: getattr(one, name) for one in _metadata(annotation) for name in _LIMITS if hasattr(one, name)}
        return _type(annotation.__origin__, limits | own)
    if origin in (list, tuple):
        return _limited(f"list of {_type(arguments[0], {})}", limits)
    if origin is dict:
        return f"names with {_type(arguments[1], {})}"
    if arguments:  # a union
        return " or ".join(dict.fromkeys(_type(one, limits) for one in arguments))
    return "section" if hasattr(annotation, "model_fields") else "any value"


def _metadata(annotation: Any) -> Iterator[Any]:
    for one in annotation.__metadata__:
        yield from getattr(one, "metadata", [one])


def _limited(word: str, limits: dict[str, Any]) -> str:
    of = {
        name: value for name, value in limits.items() if value is not None and (("length" in name) == ("list" in word))
    }
    return " ".join([word, *(f"{_LIMITS[name]} {value:g}" for name, value in of.items() if word != "text")])


# --- showing ------------------------------------------------------------------------------------------------


def find(known: list[Entry], path: str) -> list[Entry]:
    """The field of that path; of a path without its verb, or of a name alone, all that end so.

    Raises:
        UserError: there is none; the nearest ones are named.
    """
    exact = [entry for entry in known if entry.path == path]
    matches = exact or [entry for entry in known if entry.path.endswith(f".{path}")]
    if matches:
        return matches
    if path in ROOTS:
        return [Entry(path, f"The config of `longtake {path}`.", "", "required", "section", section=True)]
    above = path.rpartition(".")[0]
    beside = list(dict.fromkeys(e.name for e in known if above and e.path.rpartition(".")[0].endswith(above)))
    listed = f"; {above} has {', '.join(beside)}" if beside else "; `longtake explain` lists all"
    raise UserError(f"no field {path!r}{nearest(path, dict.fromkeys(e.path for e in known))}{listed}")


def _card(entry: Entry, known: list[Entry]) -> Iterator[str]:
    """All that is known of a field, and a line for each that lies in it."""
    yield entry.path + (f" (of {', '.join(entry.kinds)})" if entry.kinds else "")
    yield from textwrap.wrap(entry.meaning, 100, initial_indent="  ", subsequent_indent="  ")
    facts = {"unit": entry.unit, "allowed": entry.allowed, "default": entry.default}
    facts |= {"set by": ", ".join(setters(entry)), "on resume": _on_resume(entry)}
    for name, value in facts.items():
        if value and entry.path not in ROOTS:
            yield from textwrap.wrap(f"{name:<10} {value}", 100, initial_indent="  ", subsequent_indent=" " * 13)
    below = [one for one in known if one.path.rpartition(".")[0] == entry.path]
    yield from _lines(below, 2)


def setters(entry: Entry) -> list[str]:
    """Shipped configs in which a field is given, each with its value: where it matters."""
    root, *keys = entry.path.split(".")
    configs = []
    for folder in (root, "sizes", "families") if root == "train" else (root,):
        for name, settings in shipped_settings(CONFIGS / folder).items():
            values = list(dict.fromkeys(json.dumps(value) for value in _given(settings, keys)))
            if values and not entry.section:
                configs.append(f"{folder}/{name} ({', '.join(values)})")
    more = len(configs) - SET_BY
    return [*configs[:SET_BY], f"and {more} more"] if more > 0 else configs


def _given(settings: Any, keys: list[str]) -> Iterator[Any]:
    if isinstance(settings, list):
        for one in settings:
            yield from _given(one, keys)
    elif not keys:
        yield settings
    elif isinstance(settings, dict) and keys[0] in settings:
        yield from _given(settings[keys[0]], keys[1:])


def _on_resume(entry: Entry) -> str:
    """Whether a run that goes on may have another value."""
    from longtake.jobs.train.resume import RESUME_MAY_CHANGE

    root, *keys = entry.path.split(".")
    if root != "train" or not keys:
        return ""
    return "may be another" if keys[0] in RESUME_MAY_CHANGE else "as before; another with --fork"


def tree(known: list[Entry]) -> Iterator[str]:
    """A line for every field, under its section."""
    for root in ROOTS:
        yield root
        yield from _lines([entry for entry in known if entry.path.startswith(f"{root}.")], 0)


def _lines(entries_shown: list[Entry], least: int) -> Iterator[str]:
    """A line for each; kinds are named where they are not those of the section above."""
    kinds_of: dict[str, tuple[str, ...]] = {}
    for entry in entries_shown:
        kinds_of[entry.path] = entry.kinds
        indent = " " * max(least, 2 * entry.path.count("."))
        value = "" if entry.section else f" = {entry.default}"
        other = entry.kinds != kinds_of.get(entry.path.rpartition(".")[0], ())
        kinds = f" ({', '.join(entry.kinds)})" if entry.kinds and other else ""
        yield textwrap.shorten(
            f"{entry.name}{value}{kinds}: {entry.sentence}", 118 - len(indent), placeholder=" ..."
        ).join((indent, ""))


def reference() -> str:
    """docs/reference.md."""
    known = entries(options=True)
    lines = [
        "# Every field of every config",
        "",
        "Written by `make reference` from the config classes. `longtake explain FIELD` prints one of these, with the",
        "shipped configs that set it. A field of a list (`layers`, `curriculum`, `protocols`) is set by its number:",
        "`--set model.layers.0.window=8`.",
    ]
    section = ""
    for entry in known:
        if (above := entry.path.rpartition(".")[0]) != section:
            section = above
            lines += ["", f"## {above}", "", "| field | meaning | unit | default | allowed |", "|---|---|---|---|---|"]
        kinds = f" ({', '.join(entry.kinds)})" if entry.kinds else ""
        cells = (f"`{entry.name}`{kinds}", entry.meaning, entry.unit, f"`{entry.default}`", entry.allowed)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
