"""Training seen elsewhere: TensorBoard, MLflow and Weights & Biases, named by `watch` in a config.

Each is handed the numbers of every step by the first rank, as they are written into the table `steps`, which stays the
truth. Without a server all three keep files in the run's folder:

    runs/ID/watch/tensorboard/   for `tensorboard --logdir`
    runs/ID/watch/mlflow/        a SQLite database, unless MLFLOW_TRACKING_URI names a server
    runs/ID/watch/wandb/         for `wandb sync`, unless WANDB_MODE=online asks for the server
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from longtake.storage.store import Store

PROJECT = "longtake"
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""What each needs in Python, on the driver and on the workers."""


class Watcher(Protocol):
    """Takes the numbers of steps."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None: ...
    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one step; a step that is done again comes again."""

    def flush(self) -> None:
        """Let it be seen."""

    def close(self) -> None:
        """The session has ended."""


class TensorBoard:
    """Event files, as many as sessions."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one step; a step that is done again comes again."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Let it be seen."""
        self._writer.flush()

    def close(self) -> None:
        """The session has ended."""
        self._writer.close()


class MLflow:
    """A run of the experiment `longtake`, tagged with our run's id, found again by a later session."""

    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db")
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        runs = self._client.search_runs([experiment], f"tags.longtake_run = '{run}'")
        if runs:
            self._run = runs[0].info.run_id
        else:
            name = str(config.get("name", run))
            self._run = self._client.create_run(experiment, tags={"longtake_run": run}, run_name=name).info.run_id
            for key, value in config.items():
                self._client.log_param(self._run, key, str(value)[:500])

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one step; a step that is done again comes again."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in numbers.items()])

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The session has ended."""
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """A run of the project `longtake` with our run's id."""

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
        """The numbers of one step; one that is done again is passed over there, its numbers are the same."""
        self._run.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The session has ended."""
        self._run.finish()


WATCHERS: dict[str, type[Watcher]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}
"""Where numbers may go besides the tables, by its name in a config."""


class MetricLoggers:
    """All that a config names, for one session of one run."""

    def __init__(self, names: Sequence[str], store: Store, run: str, config: Mapping[str, Any]) -> None:
        self._store, self._rel = store, f"runs/{run}/watch"
        self._upload = None if store.is_folder else tempfile.mkdtemp(prefix="longtake-watch-")
        self._all = [WATCHERS[name](self._folder(name), run, config) for name in names]

    def add(self, step: int, numbers: Mapping[str, Any]) -> None:
        """The numbers among the values of a step's row."""
        told = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}
        for watcher in self._all:
            watcher.add(step, told)

    def flush(self) -> None:
        """Let what was added be seen, in an object storage too."""
        for watcher in self._all:
            watcher.flush()
        self._to_storage()

    def close(self) -> None:
        """The session has ended."""
        for watcher in self._all:
            watcher.close()
        self._to_storage()

    def _to_storage(self) -> None:
        if self._upload:
            self._store.upload_dir(self._upload, self._rel)

    def _folder(self, name: str) -> Path:
        folder = Path(self._upload or self._store.path(self._rel)) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def problems(names: Sequence[str]) -> list[str]:
    """Why some of them cannot be had here."""
    return [
        f"watch: {name} is not installed: pip install 'longtake[{name}]'"
        for name in names
        if importlib.util.find_spec(PACKAGES[name]) is None
    ]
