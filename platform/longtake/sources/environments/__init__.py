"""What `longtake collect` plays, one file each, found by this folder. A file's docstring is the environment's card.

How to add one: docs/adding-a-source.md.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from longtake import registry

if TYPE_CHECKING:
    from longtake.sources.environment import Environment


@functools.cache
def modules() -> dict[str, ModuleType]:
    """The files of all environments, by the environment's name: the file's, with hyphens."""
    from longtake.sources.environment import Environment

    by_stem = registry.modules(sys.modules[__name__], {"ENVIRONMENT": Environment})
    return {name.replace("_", "-"): module for name, module in by_stem.items()}


def environments() -> dict[str, Environment]:
    """All environments by name."""
    return {name: module.ENVIRONMENT for name, module in modules().items()}
