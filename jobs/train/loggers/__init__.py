"""Where a training's numbers go besides the tables: the loggers named by `watch` in a config, one file each.

Each is handed the numbers of every step by the first rank, as they are written into the table `steps`, which stays the
truth. Its files lie in the run's folder, `runs/ID/watch/NAME/`. A file's docstring is the logger's card; how to add
one: docs/adding-a-logger.md.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from longtake import registry

if TYPE_CHECKING:
    from longtake.jobs.train.loggers.base import MetricLogger


@functools.cache
def modules() -> dict[str, ModuleType]:
    """The files of all loggers, by the logger's name: the file's, with hyphens."""
    from longtake.jobs.train.loggers.base import MetricLogger

    by_name = registry.modules(sys.modules[__name__], {"LOGGER": MetricLogger})
    return {name.replace("_", "-"): module for name, module in by_name.items()}


def loggers() -> dict[str, type[MetricLogger]]:
    """All loggers by name."""
    return {name: module.LOGGER for name, module in modules().items()}
