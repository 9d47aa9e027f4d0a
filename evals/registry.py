"""Tasks and metrics by name: every file of evals/tasks/ and of evals/metrics/ is one."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from longtake.evals import metrics, tasks
from longtake.evals.metric import Metric
from longtake.evals.task import Task


def _found(package: ModuleType, kind: str) -> dict[str, Any]:
    """What the files of a folder define as `kind`, by the files' names."""
    modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return {name: getattr(importlib.import_module(f"{package.__name__}.{name}"), kind) for name in sorted(modules)}


def _ranked(registered: dict[str, Metric]) -> dict[str, Metric]:
    return dict(sorted(registered.items(), key=lambda item: item[1].rank))


TASKS: dict[str, Task] = _found(tasks, "TASK")
ANY_TASK: dict[str, Metric] = _ranked(_found(metrics, "METRIC"))
"""The metrics that any task which compares frames can be measured by."""
METRICS: dict[str, Metric] = ANY_TASK | {
    name: metric for task in TASKS.values() for name, metric in (task.metrics or {}).items()
}
"""All metrics, those of single tasks too, in the order in which they are shown."""
