"""The face of a logger: what a file of this folder has to hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

PROJECT = "longtake"
"""What runs are filed under where a logger has projects or experiments."""


class MetricLogger(ABC):
    """Takes the numbers of one run's steps, in one session: from the start, or from where it goes on, to its end.

    The first rank makes one and hands it all that is written into the table `steps`, in order. `package` is what has to
    be installed on the driver and on the workers, if anything, by the name under which it is imported; `install` is the
    command that does so.
    """

    package: ClassVar[str | None] = None
    install: ClassVar[str] = ""

    @abstractmethod
    def __init__(self, folder: Path, run: str, config: Mapping[str, Any]) -> None:
        """`folder`: a place for its files, kept in the run's folder; `run`: its id; `config`: the training's."""

    @abstractmethod
    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one step; a step that is done again comes again."""

    @abstractmethod
    def flush(self) -> None:
        """Let what was added be seen; called before each checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """The session has ended."""
