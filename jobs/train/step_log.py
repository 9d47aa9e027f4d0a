"""Rows of the `steps` table as a training writes them, and the numbers that its checkpoints tell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.errors import Preempted
from longtake.jobs.train.config import TrainConfig
from longtake.tables import merging
from longtake.tables import table as tables
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.jobs.train.watch import MetricLoggers
    from longtake.training.context import Context

COSTS = ("frames", "worker_s", "bytes_read")
"""What models are compared at: columns of `steps` whose sum so far a checkpoint tells."""


class StepLog:
    """Rows of the `steps` table: averaged over ranks, written in parts that a replayed stretch overwrites."""

    def __init__(self, context: Context, start: int, config: TrainConfig) -> None:
        self._context = context
        self._frames, self._steps = config.data.frames_per_step, config.steps
        self._spent = _spent(context, start)
        if context.rank == 0:
            tables.later_than(context.store, "steps", f"{context.run_id}-")
        self._loggers = _loggers(context, config) if config.watch and context.rank == 0 else None
        self._shown = 0
        self._rows: list[dict[str, Any]] = []
        self._first = start
        self._since = time.monotonic()
        self.latest: dict[str, float] = {}
        self.is_ending = False
        """Whether a rank's machine is taken back; all ranks learn so at the same step."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """One rank's numbers of a step."""
        self._show()
        now, frames = time.monotonic(), self._frames
        seconds, self._since = now - self._since, now
        numbers = self._context.mean(**numbers, step_s=seconds, ending=float(self._context.is_ending))
        self.is_ending = numbers.pop("ending") > 0
        numbers["bytes_read"] *= self._context.world
        wait = numbers.pop("data_wait") / max(numbers["step_s"], 1e-9)
        self.latest = {**numbers, "frames_per_s": frames / max(numbers["step_s"], 1e-9), "data_wait": wait}
        where = {"run": self._context.run_id, "step": step, "frames": frames}
        whole = {name: round(self.latest[name]) for name in ("clip_frames", "bytes_read")}
        worker_s = numbers["step_s"] * self._context.world
        for name, value in {"frames": frames, "worker_s": worker_s, "bytes_read": whole["bytes_read"]}.items():
            self._spent[name] += value
        self._rows.append({**where, **self.latest, **whole, "worker_s": worker_s, "val_loss": np.nan})

    def note(self, **numbers: float) -> None:
        """Add numbers to the last step's row."""
        self._rows[-1].update(numbers)
        self.latest.update(numbers)

    def metrics(self) -> dict[str, float]:
        """What a checkpoint of the last step is judged by, and what the run has cost so far."""
        return {name: value for name, value in self.latest.items() if name in ("loss", "val_loss")} | self._spent

    def flush(self) -> None:
        """Write the rows since the last flush; called before each checkpoint, so that no row is lost or doubled."""
        self._show()
        if self._loggers is not None:
            self._loggers.flush()
        if self._rows and self._context.rank == 0:
            self._context.require_lease()
            part = f"{self._context.run_id}-{self._first:08d}"
            tables.append(self._context.store, "steps", self._rows, part=part)
            merging.note_append(self._context.store, "steps")
        self._first += len(self._rows)
        self._rows, self._shown = [], 0

    def raise_if_ending(self, done: int) -> None:
        """After a checkpoint: raise Preempted where it is a machine's last."""
        if self.is_ending and done < self._steps:
            self._context.finish()
            run = self._context.run_id
            raise Preempted(f"run {run}: ended by SIGTERM at step {done}, which is saved: go on with --resume {run}")

    def close(self) -> None:
        """The last step is done."""
        if self._loggers is not None:
            self._loggers.close()

    def _show(self) -> None:
        """Hand the rows that are whole by now to who watches."""
        if self._loggers is not None:
            for row in self._rows[self._shown :]:
                self._loggers.add(row["step"], {name: value for name, value in row.items() if name != "step"})
        self._shown = len(self._rows)


def _spent(context: Context, start: int) -> dict[str, float]:
    """What the steps before `start` have cost, as their checkpoint says."""
    costs = checkpoints.manifest(context.store, context.run_id, start)["metrics"] if start else {}
    return {name: float(costs.get(name, 0)) for name in COSTS}


def _loggers(context: Context, config: TrainConfig) -> MetricLoggers:
    from longtake.jobs.train.watch import MetricLoggers

    return MetricLoggers(config.watch, context.store, context.run_id, config.model_dump(mode="json"))
