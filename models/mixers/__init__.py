"""What mixes tokens, one file each, found by this folder. A file's docstring is the card of what it holds.

A file that defines `MIXER`, a class of the face `longtake.models.mixers.base.Mixer`, is a layer's `mixer` of that name:
it carries information over any distance in time. One that defines `LOCAL` is a layer's `local` mixer: it sees a few
frames. How to add one: docs/adding-a-mixer.md.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake.models.mixers.base import Mixer

NONE = "none"
"""The name of no mixer."""


@functools.cache
def mixers() -> dict[str, type[Mixer]]:
    """The mixers over time, by name."""
    return _found("MIXER")


@functools.cache
def local_mixers() -> dict[str, type[Mixer]]:
    """The mixers over a few frames, by name."""
    return _found("LOCAL")


def _found(kind: str) -> dict[str, type[Mixer]]:
    """The files are imported when first asked for: a config can be read without PyTorch until it names layers."""
    modules = {module.name: importlib.import_module(f"{__name__}.{module.name}") for module in _files()}
    return {name: getattr(module, kind) for name, module in sorted(modules.items()) if hasattr(module, kind)}


def _files() -> list[pkgutil.ModuleInfo]:
    return [module for module in pkgutil.iter_modules(__path__) if module.name != "base"]
