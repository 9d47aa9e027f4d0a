"""TensorBoard: event files in the run's folder, `runs/ID/watch/tensorboard/`, for `tensorboard --logdir`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.jobs.train.loggers.base import MetricLogger


class TensorBoard(MetricLogger):
    """Event files, as many as sessions."""

    package, install = "tensorboardX", "pip install 'longtake[tensorboard]'"

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write them out."""
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()


LOGGER = TensorBoard
