"""The space of a sweep: axes over the dotted fields of a config, as plain data.

model.window:   {integer: [2, 8]}
engine.lr:      {loguniform: [1e-4, 1e-2]}
model.layers:   {choice: {plain: [...], mixed: [...]}}     # any values; the names are what tables show
data.curriculum: {choice: {flat: [{frames: 32}], ramp: [{until: 8, frames: 16}, {frames: 32}]}}
data.curriculum.0.until: {integer: [4, 16], when: {data.curriculum: ramp}}     # an axis of some points only
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_serializer, model_validator

from longtake.config import Config
from longtake.errors import unknown

Label = str | int | float | bool | None
"""What stands for a value in tables and in the study."""

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
KINDS = ("choice", "uniform", "loguniform", "integer")
MOST_VALUES = 64
"""Of a range of whole numbers, up to which each is tried before a sweep."""


class Axis(Config):
    """What one field may be: exactly one of the four kinds; with `when`, only at points where other axes say so."""

    choice: list[Any] | dict[str, Any] | None = Field(None, description="values, or names of values")
    uniform: Pair | None = None
    """Lowest and highest value, drawn evenly [of the field]"""
    loguniform: Pair | None = None
    """Lowest and highest value, drawn evenly in the logarithm [of the field]"""
    integer: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest whole number, both among them [of the field]"""
    when: dict[str, Label | list[Label]] | None = Field(
        None,
        description="values (or their names) of choices above, without which the field stays as it is [of the field]",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"an axis is exactly one of {', '.join(KINDS)}; here: {', '.join(given) or 'none'}")
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
        limits = self.uniform or self.loguniform or self.integer
        assert limits is not None
        return limits

    @property
    def options(self) -> dict[Label, Any]:
        """Label → value of a choice, in the given order; empty for a range."""
        if isinstance(self.choice, dict):
            return dict(self.choice.items())
        return {_label(value): value for value in self.choice or []}

    @property
    def count(self) -> int | None:
        """Number of values; None for a continuous range."""
        if self.choice is not None:
            return len(self.choice)
        return None if self.integer is None else self.integer[1] - self.integer[0] + 1

    @property
    def values(self) -> list[Label]:
        """The labels of all values, of an axis that is not continuous."""
        return list(self.options) if self.integer is None else list(range(self.integer[0], self.integer[1] + 1))

    @property
    def extremes(self) -> list[Label]:
        """The labels to try a config with: all of a choice, both ends of a range."""
        return list(self.options) if self.choice is not None else list(self.bounds)

    @property
    def between(self) -> list[Label]:
        """The labels between its ends that are few enough to be tried too: of a range of whole numbers."""
        return self.values[1:-1] if self.integer is not None and len(self.values) <= MOST_VALUES else []

    @property
    def conditions(self) -> dict[str, list[Label]]:
        """Axis → the labels of it with which this one counts; empty: it always does."""
        return {field: each if isinstance(each, list) else [each] for field, each in (self.when or {}).items()}

    def value(self, label: Label) -> Any:
        """What a label stands for."""
        return self.options[label] if self.choice is not None else label


Space = Mapping[str, Axis]
Extreme = tuple[str, Label]
"""A field and one of its extremes."""


def problems(space: Space) -> list[str]:
    """One line per axis whose condition cannot be met, or that another one would overwrite."""
    lines, above = [], list[str]()
    for field, axis in space.items():
        for parent, labels in axis.conditions.items():
            if parent not in above:
                lines.append(f"{field}.when: " + unknown("axis above it", parent, above))
            elif space[parent].choice is None:
                lines.append(f"{field}.when: {parent} is a range; a condition is on a choice")
            else:
                options = space[parent].options
                wrong = [str(label) for label in labels if label not in options]
                lines += [f"{field}.when: " + unknown(f"value of {parent}", each, map(str, options)) for each in wrong]
                lines += [] if labels else [f"{field}.when: no value of {parent}"]
        lines += [f"{field}: would overwrite {each}; list it first" for each in above if each.startswith(f"{field}.")]
        above.append(field)
    return lines


def active(space: Space, field: str, labels: Mapping[str, Label]) -> bool:
    """Whether an axis counts at a point of which the axes above it are known."""
    return all(parent in labels and labels[parent] in allowed for parent, allowed in space[field].conditions.items())


def settings(space: Space, labels: Mapping[str, Label]) -> dict[str, Any]:
    """Dotted field → value, for one point; in the order of the space, in which a whole comes before its parts."""
    return {field: axis.value(labels[field]) for field, axis in space.items() if field in labels}


def size(space: Space) -> int | None:
    """Number of points; None where an axis is continuous."""
    return _count(space, lambda axis: axis.count)


def points(space: Space) -> Iterator[dict[str, Label]]:
    """Every point of a space without continuous axes, the last axis changing fastest."""
    return _walk(space, list(space), {}, lambda axis: axis.values)


def corners(space: Space, most: int = 256) -> Iterator[dict[str, Label]]:
    """Points to check before a sweep, together with every value of a choice or of whole numbers at least once.

    They are every combination of extremes, or, where those are more than `most`, about so many that hold every pair
    of extremes that can meet.
    """
    total = _count(space, lambda axis: len(axis.extremes))
    assert total is not None
    points = _walk(space, list(space), {}, lambda axis: axis.extremes) if total <= most else _pairwise(space, most)
    yield from points
    for field, axis in space.items():
        for label in axis.between:
            yield _point(space, {**_needed(space, field), field: label}, lambda labels: labels[0])


def _pairwise(space: Space, most: int) -> Iterator[dict[str, Label]]:
    """Points that hold every pair of extremes, and others drawn at random, `most` in all or as many as that takes."""
    draw, met, count = random.Random(0), set[frozenset[Extreme]](), 0
    extremes = [(field, label) for field, axis in space.items() for label in axis.extremes]
    for pair in itertools.combinations(extremes, 2):
        if pair[0][0] == pair[1][0] or frozenset(pair) in met:
            continue
        wanted = {name: label for field, _ in pair for name, label in _needed(space, field).items()}
        point = _point(space, {**wanted, **dict(pair)}, draw.choice)
        met |= {frozenset(two) for two in itertools.combinations(point.items(), 2)}
        count += 1
        yield point
    for _ in range(most - count):
        yield _point(space, {}, draw.choice)


def _walk(
    space: Space, fields: list[str], labels: dict[str, Label], values: Callable[[Axis], list[Label]]
) -> Iterator[dict[str, Label]]:
    """The point so far with every combination of what the axes to come may be."""
    if not fields:
        yield labels
    elif not active(space, fields[0], labels):
        yield from _walk(space, fields[1:], labels, values)
    else:
        for label in values(space[fields[0]]):
            yield from _walk(space, fields[1:], {**labels, fields[0]: label}, values)


def _count(space: Space, count: Callable[[Axis], int | None]) -> int | None:
    """How many points there are, counted without making them: only axes in conditions are walked through."""
    steering = {parent for axis in space.values() for parent in axis.conditions}

    def after(fields: list[str], labels: dict[str, Label]) -> int | None:
        if not fields:
            return 1
        field, rest = fields[0], fields[1:]
        if not active(space, field, labels):
            return after(rest, labels)
        if field in steering:
            parts = [after(rest, {**labels, field: label}) for label in space[field].values]
            return None if None in parts else sum(part or 0 for part in parts)
        here, beyond = count(space[field]), after(rest, labels)
        return None if here is None or beyond is None else here * beyond

    return after(list(space), {})


def _needed(space: Space, field: str) -> dict[str, Label]:
    """Labels of axes above with which an axis counts."""
    wanted: dict[str, Label] = {}
    for parent, labels in space[field].conditions.items():
        wanted |= {**_needed(space, parent), parent: labels[0]}
    return wanted


def _point(space: Space, wanted: Mapping[str, Label], choose: Callable[[list[Label]], Label]) -> dict[str, Label]:
    """A point with some labels given, the others chosen among the extremes."""
    labels: dict[str, Label] = {}
    for field, axis in space.items():
        if active(space, field, labels):
            labels[field] = wanted[field] if field in wanted else choose(axis.extremes)
    return labels


def _label(value: Any) -> Label:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value)
