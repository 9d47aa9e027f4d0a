"""Texts of YAML: they take no more room than they seem to, and can carry the hash of themselves."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import yaml

from longtake.errors import UserError
from longtake.strict_yaml import Dumper, Loader

MOST_VALUES = 100_000
"""In one text, those that aliases repeat counted each time: the largest config that we ship has some hundred."""

_SEAL = re.compile(r"# sha256 ([0-9a-f]{64})[^\n]*\n")
_ADVICE = "(of all below; whoever changes that removes this line)"


def parse(text: str, where: str) -> Any:
    """What a text says; `where` names it in messages.

    Raises:
        UserError: no YAML, too much of it, or a text that was sealed and is another now.
    """
    seal = _SEAL.match(text)
    if seal and hashlib.sha256(text[seal.end() :].encode()).hexdigest() != seal[1]:
        raise UserError(
            f"{where}: damaged, its SHA-256 is not that of what was written: bring it back from a copy; if it was you "
            "who changed it, remove its first line"
        )
    parsed, problem = _loaded(text)
    if problem:
        raise UserError(f"{where}{problem}")
    return parsed


def _loaded(text: str) -> tuple[Any, str]:
    """What a text says, and what is wrong with it, after the place that it is from."""
    try:
        parsed = yaml.load(text, Loader=Loader)
        values = _count(parsed, {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        return None, f"{line}: not valid YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
    except RecursionError:
        return None, ": not valid YAML: its values lie too deep in one another"
    except ValueError as error:  # a number of thousands of digits, a day that is none
        return None, f": not valid YAML: {error}"
    if values > MOST_VALUES:
        return None, f": its aliases (*name) make more than {MOST_VALUES:,} values of it: write it out"
    return parsed, ""


def dump(value: Any) -> str:
    """The YAML that `parse` reads back to the same value."""
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


def sealed(text: str) -> str:
    """A text under the hash of itself, as a comment."""
    return f"# sha256 {hashlib.sha256(text.encode()).hexdigest()} {_ADVICE}\n{text}"


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are when each alias is followed; what holds itself holds more than any limit."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES + 1
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, known) for one in inner)
    return known[id(value)]
