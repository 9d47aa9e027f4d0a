"""Sweeps: many trials of one function on Ray Tune, searched and pruned by a study, on resources that suffice.

Knows no model and no metric: a trial is `trial(payload, assignment, judge)`, which calls `judge(step, numbers)`
at its checkpoints, with the numbers objective and frames, and returns when it says no.

A trial of one worker runs whole in a Tune actor, which the next one uses again. A larger one starts its own Ray
Train workers: its actor holds no CPU, else it would starve them, and ends only when they have ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from longtake.training.early_stopping import Judge
from longtake.tuning.outcome import OnEvent
from longtake.tuning.sweep_demand import SweepDemand

if TYPE_CHECKING:
    from longtake.tuning.study import Assignment, Study

Payload = TypeVar("Payload")
Trial = Callable[[Payload, "Assignment", Judge], None]

# No loggers of its own, no checks of metrics that only we read, Ctrl-C left to the command line.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


def run(
    study: Study,
    trial: Trial[Payload],
    payload: Payload,
    *,
    trials: int,
    need: SweepDemand,
    max_failures: int = 3,
    on_event: OnEvent = lambda study: None,
) -> None:
    """Run trials until the study has `trials` of them that have ended; unfinished ones go on first.

    Args:
        trial: importable in a worker; an exception makes its trial `failed`, and the others go on.
        max_failures: how often a trial whose process died is started again.
        on_event: called after every change of the study.
    """
    added = {name: value for name, value in TUNE_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        from longtake.tuning import ray_tune

        ray_tune.run(study, trial, payload, trials, need, max_failures, on_event)
    finally:
        for name in added:
            os.environ.pop(name, None)
