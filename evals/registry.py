"""Tasks and metrics by name: every file of evals/tasks/ and of evals/metrics/ is one."""

from __future__ import annotations

from longtake import registry
from longtake.evals import metrics, tasks
from longtake.evals.metric import Metric
from longtake.evals.task import Task


def _ranked(registered: dict[str, Metric]) -> dict[str, Metric]:
    return dict(sorted(registered.items(), key=lambda item: item[1].rank))


TASKS: dict[str, Task] = {name: module.TASK for name, module in registry.modules(tasks, {"TASK": Task}).items()}
ANY_TASK = _ranked({name: module.METRIC for name, module in registry.modules(metrics, {"METRIC": Metric}).items()})
"""The metrics that any task which compares frames can be measured by."""
METRICS = ANY_TASK | {name: metric for task in TASKS.values() for name, metric in (task.metrics or {}).items()}
"""All metrics, those of single tasks too, in the order in which they are shown."""
