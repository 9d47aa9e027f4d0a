"""MLflow: a run of the experiment `longtake`, in `runs/ID/watch/mlflow/` unless MLFLOW_TRACKING_URI names a server.

The file there is a SQLite database.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.jobs.train.loggers.base import PROJECT, MetricLogger


class MLflow(MetricLogger):
    """A run tagged with our run's id, found again by a later session."""

    package, install = "mlflow", "pip install 'longtake[mlflow]'"

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db")
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT)
        runs = self._client.search_runs([experiment], f"tags.longtake_run = '{run}'")
        if runs:
            self._run = runs[0].info.run_id
        else:
            name = str(config.get("name", run))
            self._run = self._client.create_run(experiment, tags={"longtake_run": run}, run_name=name).info.run_id
            for key, value in config.items():
                self._client.log_param(self._run, key, str(value)[:500])

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """A metric each, all at once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in numbers.items()])

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The run is finished there."""
        self._client.set_terminated(self._run)


LOGGER = MLflow
