"""Sweeps: many trials of one function on Ray Tune, searched and pruned by a study, on resources that suffice.

Knows no model and no metric: a trial is `trial(payload, assignment, judge)`, which calls `judge(step, numbers)`
at its checkpoints, with the numbers objective and frames, and returns when it says no.

A trial of one worker runs whole in a Tune actor, which the next one uses again. A larger one starts its own Ray
Train workers: its actor holds no CPU, else it would starve them, and ends only when they have ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from longtake.cluster.launch import Demand
from longtake.errors import UserError
from longtake.training.early_stopping import Judge

if TYPE_CHECKING:
    from longtake.tuning.study import Assignment, Study

Payload = TypeVar("Payload")
Trial = Callable[[Payload, "Assignment", Judge], None]
OnEvent = Callable[["Study"], None]

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
COORDINATOR_MEMORY = 256 * 2**20  # bytes of a trial's actor that only waits for its workers


@dataclass(frozen=True)
class SweepDemand(Demand):
    """What a sweep asks for: `at_once` trials of `workers` workers each."""

    at_once: int = 1

    def problems(self, cpus: float, gpus: float, where: str = "this machine") -> list[str]:
        """One line per missing resource, with the arithmetic and the number of trials that would fit."""
        parts = f"({self.cpus_per_worker:g} CPU for the rank + {self.data_cpus_per_worker:g} for its data tasks)"
        asked = [
            (self.cpus_per_worker + self.data_cpus_per_worker, parts, "CPUs", cpus),
            (self.gpus_per_worker, f"{self.gpus_per_worker:g} GPU", "GPUs", gpus),
        ]
        found = []
        for each, words, unit, there in asked:
            if (total := self.at_once * self.workers * each) > there:
                fits = int(there // (self.workers * each))
                advice = f"lower at_once to {fits}" if fits else "lower workers: not even one trial fits"
                found.append(
                    f"{self.at_once} trials at once x {self.workers} workers x {words} = {total:g} {unit}, "
                    f"{where} has {there:g}: {advice}"
                )
        return found

    @property
    def least(self) -> Demand:
        """One trial: the others wait."""
        return replace(self, at_once=1)

    @property
    def nested(self) -> bool:
        """Whether a trial starts workers of its own."""
        return self.workers > 1

    def trial_resources(self) -> dict[str, float]:
        """What Tune sets aside for the actor of one trial."""
        if self.nested:
            return {"cpu": 0, "memory": COORDINATOR_MEMORY}
        resources = {"cpu": self.cpus_per_worker + self.data_cpus_per_worker}
        return resources | ({"gpu": self.gpus_per_worker} if self.gpus_per_worker else {})


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


def outcome(error: BaseException | None) -> dict[str, Any]:
    """The last result of a trial: how it ended. What its config is at fault for is no crash: it would come again."""
    reason = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
    return {"done": True, "reason": reason, "crashed": not isinstance(error, UserError)}
