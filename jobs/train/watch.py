"""The loggers that a training names, together: handed every step's numbers, and brought into the store."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.jobs.train.loggers import loggers

if TYPE_CHECKING:
    from longtake.storage.store import Store


class MetricLoggers:
    """All that a config names, for one session of one run."""

    def __init__(self, names: Sequence[str], store: Store, run: str, config: Mapping[str, Any]) -> None:
        self._store, self._rel = store, f"runs/{run}/watch"
        self._upload = None if store.is_folder else tempfile.mkdtemp(prefix="longtake-watch-")
        self._all = [loggers()[name](self._folder(name), run, config) for name in names]

    def add(self, step: int, numbers: Mapping[str, Any]) -> None:
        """The numbers among the values of a step's row."""
        finite = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}
        for logger in self._all:
            logger.add(step, finite)

    def flush(self) -> None:
        """Let what was added be seen, in an object storage too."""
        for logger in self._all:
            logger.flush()
        self._to_storage()

    def close(self) -> None:
        """The session has ended."""
        for logger in self._all:
            logger.close()
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
    needed = {name: loggers()[name] for name in names}
    return [
        f"watch: {name} is not installed: {logger.install}"
        for name, logger in needed.items()
        if logger.package and importlib.util.find_spec(logger.package) is None
    ]
