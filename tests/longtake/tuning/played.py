"""A study as Tune plays it at concurrency 1, without Tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longtake.tuning.study import Assignment, Study
from tests.longtake.tuning.toy_sweep import STEPS, objective

Objective = Callable[[Assignment, int], float]


class Killed(Exception):
    """Stands for kill -9 of the driver."""


def play(study: Study, trials: int, kill_at: int = -1, value: Objective = objective) -> None:
    """What Tune does with a study at concurrency 1, without Tune; the driver dies at event `kill_at`."""
    events = iter(range(1_000_000))

    def event() -> None:
        if next(events) == kill_at:
            raise Killed

    left = [*study.unfinished()]
    while left or len(study) < trials:
        given = left.pop(0) if left else study.ask()
        event()
        for step in range(2, STEPS + 1, 2):
            costs = {name: 100 * float(given.labels.get("extra") or 0) for name in study.against}
            go_on = study.report(
                given.number, step, value(given, step), frames=10 * step, seconds=step / 10, costs=costs
            )
            event()
            if not go_on:
                break
        study.finish(given.number)
        event()


def told(study: Study) -> list[dict[str, Any]]:
    """The rows without what differs from one sweep to the next."""
    return [
        {name: value for name, value in row.items() if name not in ("run", "sweep", "seconds")} for row in study.rows()
    ]
