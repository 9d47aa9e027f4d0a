"""What `longtake ingest` reads, one file each, found by this folder. A file's docstring is the card of its format.

How to add one: docs/adding-a-source.md.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from longtake import registry

if TYPE_CHECKING:
    from longtake.sources.formats.base import Format


@functools.cache
def modules() -> dict[str, ModuleType]:
    """The files of all formats, by the format's name: the file's, with hyphens."""
    from longtake.sources.formats.base import Format

    by_stem = registry.modules(sys.modules[__name__], {"FORMAT": Format})
    return {name.replace("_", "-"): module for name, module in by_stem.items()}


def formats() -> dict[str, Format]:
    """All formats by name."""
    return {name: module.FORMAT for name, module in modules().items()}
