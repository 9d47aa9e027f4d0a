"""The tasks by name: every file of evals/tasks/ is one."""

from __future__ import annotations

import importlib
import pkgutil

from longtake.evals import tasks
from longtake.evals.task import Task

TASKS: dict[str, Task] = {
    module.name: importlib.import_module(f"{tasks.__name__}.{module.name}").TASK
    for module in pkgutil.iter_modules(tasks.__path__)
}
