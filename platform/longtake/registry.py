"""What there is of a kind: the files of its folder, and what other packages have registered for it.

A file is registered by lying in the folder and giving a value to the kind's name (`FORMAT`, `ENVIRONMENT`, ...); the
file's name is the value's, its docstring the card. A package of your own registers a module of the same form by an
entry point, whose group is the folder's name as it is imported:

    [project.entry-points."longtake.sources.formats"]
    my-logs = "my_package.my_logs"

Imports nothing of ours but errors, and every room may import it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import pkgutil
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_core import PydanticKnownError

from longtake.errors import UserError

NOT_REGISTERED = ("base",)
"""Files of a folder that hold what the others share; any other without the kind's name is passed over too."""


def files(package: ModuleType) -> dict[str, Path]:
    """The file of each candidate by name: those of the folder, then those of other packages. None is imported.

    Raises:
        UserError: an entry point names a module that is not there, or has a name that is taken.
    """
    own = {name: Path(folder) / f"{name}.py" for folder in package.__path__ for name in _stems(folder)}
    return dict(sorted(own.items())) | {point.name: _file(point) for point in _points(package)}


def modules(package: ModuleType, faces: Mapping[str, type]) -> dict[str, ModuleType]:
    """The modules that give a value to one of some names, by their own name; `faces` says of what type each value is.

    Raises:
        UserError: an entry point that cannot be loaded, has a name that is taken, or holds none of these values.
    """
    own = {name: importlib.import_module(f"{package.__name__}.{name}") for name in _own(package)}
    by_name = {name: module for name, module in own.items() if _held(module, faces)}
    for point in _points(package):
        by_name[point.name] = _loaded(point, faces)
    return dict(sorted(by_name.items()))


def known_name(name: str, names: Iterable[str]) -> str:
    """The name, if it is one of these; else the error of a Literal, which says what is allowed."""
    if name not in (known := list(names)):
        raise PydanticKnownError("literal_error", {"expected": " or ".join(f"'{one}'" for one in known)})
    return name


def one_of(configs: Iterable[type[BaseModel]], key: str) -> Any:
    """The type of a field that holds one of several configs, told apart by the Literal that each has under `key`."""
    return Annotated[functools.reduce(operator.or_, configs), Field(discriminator=key)]


def _own(package: ModuleType) -> list[str]:
    return sorted(name for folder in package.__path__ for name in _stems(folder))


def _stems(folder: str) -> list[str]:
    return [module.name for module in pkgutil.iter_modules([folder]) if module.name not in NOT_REGISTERED]


def _points(package: ModuleType) -> list[EntryPoint]:
    """What other packages register, by name."""
    points = sorted(entry_points(group=package.__name__), key=lambda point: point.name)
    taken = {name.replace("_", "-") for name in _own(package)}
    for point in points:
        if point.name.replace("_", "-") in taken:
            raise UserError(f"{_told(point)}: the name {point.name} is taken: give it another")
        taken.add(point.name.replace("_", "-"))
    return points


def _loaded(point: EntryPoint, faces: Mapping[str, type]) -> ModuleType:
    try:
        module = point.load()
    except Exception as error:
        raise UserError(f"{_told(point)}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(module, ModuleType):
        raise UserError(f"{_told(point)}: names {point.value}, which is no module")
    if not _held(module, faces):
        kinds = " or ".join(f"{name}, a {face.__name__}" for name, face in faces.items())
        raise UserError(f"{_told(point)}: {point.value} has no {kinds}")
    return module


def _held(module: ModuleType, faces: Mapping[str, type]) -> bool:
    """Whether a module gives a value of the right type to any of the names."""
    values = [(getattr(module, name, None), face) for name, face in faces.items()]
    return any(issubclass(value if isinstance(value, type) else type(value), face) for value, face in values)


def _file(point: EntryPoint) -> Path:
    try:
        spec = importlib.util.find_spec(point.value)
    except ImportError as error:
        raise UserError(f"{_told(point)}: cannot be loaded: {error}") from error
    if spec is None or spec.origin is None:
        raise UserError(f"{_told(point)}: there is no module {point.value}")
    return Path(spec.origin)


def _told(point: EntryPoint) -> str:
    """Whose entry point it is."""
    owner = point.dist.name if point.dist is not None else "?"
    return f"package {owner}, entry point {point.name} of {point.group}"
