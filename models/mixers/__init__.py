"""What mixes tokens, one file each, found by this folder. A file's docstring is the card of what it holds.

A file that defines `MIXER`, a class of the face `longtake.models.mixers.base.Mixer`, is a layer's `mixer` of that name:
it carries information over any distance in time. One that defines `LOCAL` is a layer's `local` mixer: it sees a few
frames. How to add one: docs/adding-a-mixer.md.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from longtake import registry

if TYPE_CHECKING:
    from longtake.models.mixers.base import Mixer

NONE = "none"
"""The name of no mixer."""


@functools.cache
def mixers() -> dict[str, type[Mixer]]:
    """The mixers over time, by name."""
    return _holding("MIXER")


@functools.cache
def local_mixers() -> dict[str, type[Mixer]]:
    """The mixers over a few frames, by name."""
    return _holding("LOCAL")


def _holding(kind: str) -> dict[str, type[Mixer]]:
    """The files are imported when first asked for: a config can be read without PyTorch until it names layers."""
    from longtake.models.mixers.base import Mixer

    modules = registry.modules(sys.modules[__name__], {"MIXER": Mixer, "LOCAL": Mixer})
    return {name: getattr(module, kind) for name, module in modules.items() if hasattr(module, kind)}
