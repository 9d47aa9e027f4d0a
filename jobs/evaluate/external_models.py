"""Models that are not ours: a file that makes systems, scored beside our checkpoints.

`systems: {NAME: FILE.py:MAKER}` in an evaluation; `MAKER(seeds)` gives a fresh object with the face of
`longtake.evals.systems.System`, one seed per clip. The file travels to the workers with the cells, whatever machine
they are on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from longtake.errors import UserError, unknown

if TYPE_CHECKING:
    from longtake.evals.systems import System

RUN = "foreign-"
"""What the run of such a system's rows begins with; then comes a hash of the file, so that a change is scored anew."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
FACE = ("observe", "step")

Maker = Callable[[Sequence[int]], "System"]


@dataclass(frozen=True)
class ExternalModel:
    """A model that is not ours: what makes it, which text that is, and whether it can forget what it was shown."""

    name: str
    run: str
    make: Maker
    forgets: bool


def read(systems: Mapping[str, str]) -> list[ExternalModel]:
    """Load what an evaluation names. Raises UserError, a line per name, file or maker that is none."""
    from longtake.evals.baselines import BASELINES

    models, problems = [], []
    for name, where in systems.items():
        if not NAME.fullmatch(name) or name in BASELINES:
            problems.append(f"systems.{name}: a name has letters, digits and . _ -, and is not {', '.join(BASELINES)}")
            continue
        try:
            models.append(_load(name, where))
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return models


def travel(makers: Iterable[Maker | None]) -> None:
    """Let makers go to workers by their text, not by the name of a module that no worker knows; on an open Ray."""
    from ray import cloudpickle

    register: Callable[[ModuleType], None] = cloudpickle.register_pickle_by_value
    for name in {make.__module__ for make in makers if make is not None}:
        register(sys.modules[name])


def _load(name: str, where: str) -> ExternalModel:
    file, colon, maker = where.partition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not path.is_file():
        raise UserError(f"systems.{name}: {where!r} is not FILE.py:MAKER of a file that is there")
    module = _module(name, path)
    if not callable(getattr(module, maker, None)):
        makers = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"systems.{name}: {unknown(f'maker in {file}', maker, makers)}")
    make: Maker = getattr(module, maker)
    missing = [part for part in FACE if isinstance(make, type) and not hasattr(make, part)]
    if missing:
        raise UserError(f"systems.{name}: {maker} has no {' and no '.join(missing)}: see docs/adding-a-task.md")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return ExternalModel(name, RUN + digest, make, hasattr(make, "forget"))


def _module(name: str, path: Path) -> ModuleType:
    """The file as a module of a name of its own."""
    spec = importlib.util.spec_from_file_location(f"foreign_{name}".replace("-", "_").replace(".", "_"), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickling look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"systems.{name}: {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
