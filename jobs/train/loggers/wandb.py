"""Weights & Biases: a run of the project `longtake`, in `runs/ID/watch/wandb/` for `wandb sync`.

WANDB_MODE=online asks for the server at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.jobs.train.loggers.base import PROJECT, MetricLogger


class WeightsAndBiases(MetricLogger):
    """A run with our run's id."""

    package, install = "wandb", "pip install 'longtake[wandb]'"

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT,
            id=run,
            name=str(config.get("name", run)),
            config=dict(config),
            dir=str(folder),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """All at once; a step that is done again is passed over there, its numbers are the same."""
        self._run.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The run is finished there."""
        self._run.finish()


LOGGER = WeightsAndBiases
