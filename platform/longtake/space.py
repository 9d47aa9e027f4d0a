"""The space of a sweep: axes over the dotted fields of a config, as plain data.

model.window:   {integer: [2, 8]}
engine.lr:      {loguniform: [1e-4, 1e-2]}
model.layers:   {choice: {plain: [...], mixed: [...]}}     # any values; the names are what tables show
data.curriculum: {choice: [[{frames: 32}], [{until: 8, frames: 16}, {frames: 32}]]}
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_serializer, model_validator

from longtake.config import Config

Label = str | int | float | bool | None
"""What stands for a value in tables and in the study."""

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Axis(Config):
    """What one field may be: exactly one of the four kinds."""

    choice: list[Any] | dict[str, Any] | None = Field(None, description="values, or names of values")
    uniform: Pair | None = None
    loguniform: Pair | None = None
    integer: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"an axis is exactly one of {kinds}; here: {', '.join(given) or 'none'}")
        if self.choice is not None:
            self._check_choice()
        elif self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"{given[0]}: the first bound must be below the second, got {self.bounds}")
        elif self.loguniform and self.bounds[0] <= 0:
            raise ValueError(f"loguniform: bounds must be above 0, got {self.bounds}")
        return self

    @model_serializer
    def _given(self) -> dict[str, Any]:
        """Only the kind that it is: a config is read by people."""
        kinds = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in kinds.items() if value is not None}

    def _check_choice(self) -> None:
        labels = list(self.options)
        if not labels:
            raise ValueError("choice: no values")
        if self.choice is not None and len(labels) != len(self.choice):
            raise ValueError("choice: a value is given twice")

    @property
    def bounds(self) -> list[float] | list[int]:
        """Lowest and highest value of a range."""
        found = self.uniform or self.loguniform or self.integer
        assert found is not None
        return found

    @property
    def options(self) -> dict[Label, Any]:
        """Label → value of a choice, in the given order; empty for a range."""
        if isinstance(self.choice, dict):
            return dict(self.choice.items())
        return {_label(value): value for value in self.choice or []}

    def extremes(self) -> list[Label]:
        """The labels to try a config with: all of a choice, both ends of a range."""
        return list(self.options) if self.choice is not None else list(self.bounds)

    def value(self, label: Label) -> Any:
        """What a label stands for."""
        return self.options[label] if self.choice is not None else label


Space = Mapping[str, Axis]


def settings(space: Space, labels: Mapping[str, Label]) -> dict[str, Any]:
    """Dotted field → value, for one point of the space."""
    return {field: space[field].value(label) for field, label in labels.items()}


def size(space: Space) -> int | None:
    """Number of points; None where an axis is continuous."""
    total = 1
    for axis in space.values():
        if axis.integer is not None:
            total *= axis.integer[1] - axis.integer[0] + 1
        elif axis.choice is not None:
            total *= len(axis.choice)
        else:
            return None
    return total


def corners(space: Space, most: int = 256) -> Iterator[dict[str, Label]]:
    """Points to check before a sweep: every combination of extremes, or `most` that hold every extreme."""
    ends = {field: axis.extremes() for field, axis in space.items()}
    total = 1
    for labels in ends.values():
        total *= len(labels)
    if total <= most:
        for point in itertools.product(*ends.values()):
            yield dict(zip(ends, point, strict=True))
        return
    first = {field: labels[0] for field, labels in ends.items()}
    singles = [{**first, field: label} for field, labels in ends.items() for label in labels]
    yield from singles
    draw = random.Random(0)
    for _ in range(most - len(singles)):
        yield {field: draw.choice(labels) for field, labels in ends.items()}


def _label(value: Any) -> Label:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value)
