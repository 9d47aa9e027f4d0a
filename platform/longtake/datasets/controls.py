"""What a dataset's actions are called, which key each has, and how an action moves the pose.

A source says what it knows (`about`); where poses are recorded and the source does not say how actions move them, the
writer estimates it from the recorded steps. Pose is (x, y, yaw); a move is (ahead, left, turn), as seen from a pose.
Letters: n steps, A numbers of an action as a model sees it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longtake.datasets.worlds import WRAPS
from longtake.errors import UserError, unknown

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

Vector = NDArray[np.float64]
Three: TypeAlias = tuple[float, float, float]
Axes = Literal["before", "after"]
STILL: Three = (0.0, 0.0, 0.0)
POSE = 3
"""Numbers of a pose whose moves are known: x, y and yaw."""
SLACK = 1e-6
"""By which an action may lie beyond its bounds: the rounding of fp32."""
KEYS = "1234567890qwertyuiop"
"""For actions without a key of their own, one after another."""
EPISODES = 64
"""Whose steps are looked at, the first ones of the training split."""
OUTLIER = 4.0
"""Median deviations from which on a step is left out: what ran into a wall, or jumped, says nothing of an action."""
ROUNDS = 10
"""Fits, each without the outliers of the one before."""
LEAST = 2e-3
"""Of a median deviation, in cells and radians: what is moved exactly has no outliers but those that are seen."""


class Control(BaseModel):
    """An action that has a name and keys (`KeyboardEvent.key`, `+` between those held together).

    `action`: the numbers that it adds to those of an action, or of discrete ones a one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    keys: tuple[str, ...]
    action: tuple[float, ...]


class Motion(BaseModel):
    """How actions move the pose: move = gain @ action + carry @ move before + drift.

    gain: 3 rows (ahead, left, turn) of A numbers; carry: 2 rows of 2 (ahead, left), for what glides on. axes: whether
    ahead is where the pose before looks, or the one after, as where one turns first and walks then. residual: root mean
    square of what is left of each part over all steps that were looked at, in cells, cells and radians; kept: the share
    of steps that are no outliers. steps: 0 where the source itself says it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain: Annotated[tuple[tuple[float, ...], ...], Field(min_length=3, max_length=3)]
    carry: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    drift: Three = STILL
    axes: Axes = "before"
    residual: Three = STILL
    kept: float = 1.0
    steps: int = 0

    def moved(self, before: Vector, pose: Vector, action: NDArray[Any]) -> Vector:
        """The poses (n, 3) after actions (n, A), from poses that were reached from those `before`."""
        led = np.asarray(action, np.float64) @ np.asarray(self.gain).T + np.asarray(self.drift)
        x, y, yaw = np.asarray(pose, np.float64).T
        # What glides on bears on where one walks, not on the turn, so the turn is known before it.
        turn = led[:, 2]
        facing = yaw + turn if self.axes == "after" else yaw
        glide = moves(before, pose, seen_from=np.stack([x, y, facing], 1))[:, :2]
        ahead, left = (led[:, :2] + glide @ np.asarray(self.carry).T).T
        cos, sin = np.cos(facing), np.sin(facing)
        return np.stack([x + ahead * cos - left * sin, y + ahead * sin + left * cos, yaw + turn], 1)


class Controls(BaseModel):
    """What can be done in the worlds of a dataset.

    Discrete actions are one-hot, and one at a time; of others all that are held are added, each number kept within
    its bounds. bounds: (least, largest) of each number; of a source that does not say them, what was recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    controls: tuple[Control, ...]
    discrete: bool = False
    bounds: tuple[tuple[float, float], ...] = ()
    motion: Motion | None = None

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        lengths = {len(control.action) for control in self.controls}
        lengths |= {len(row) for row in self.motion.gain} if self.motion else set()
        lengths |= {len(self.bounds)} if self.bounds else set()
        if len(lengths) > 1:
            raise ValueError(f"controls: actions of {sorted(lengths)} numbers; all are of one length")
        return self

    def named(self, name: str) -> Control:
        """A control by its name. Raises UserError."""
        for control in self.controls:
            if control.name == name:
                return control
        raise UserError(unknown("action", name, [control.name for control in self.controls]))

    @property
    def width(self) -> int:
        """Numbers of an action."""
        return len(self.controls[0].action)

    def held(self, keys: Iterable[str]) -> NDArray[np.float32]:
        """The action (A) of the keys that are held: of discrete ones that with the most keys, of others the sum."""
        down = set(keys)
        pressed = [(len(key.split("+")), c) for c in self.controls for key in c.keys if set(key.split("+")) <= down]
        if self.discrete:
            most = max(pressed, key=lambda results: results[0], default=None)
            return np.array(most[1].action if most else np.zeros(self.width), np.float32)
        chosen = {control.name: control.action for _, control in pressed}
        total = np.zeros(self.width)
        for action in chosen.values():
            total += action
        bounds = np.array(self.bounds or [(-np.inf, np.inf)] * self.width)
        return np.clip(total, bounds[:, 0], bounds[:, 1]).astype(np.float32)

    def problem(self, action: NDArray[Any]) -> str | None:
        """Why numbers (..., A) are no actions, in words; None where they are."""
        if action.shape[-1:] != (self.width,):
            return f"{action.shape[-1] if action.ndim else 'one'} numbers, but one has {self.width}"
        if not np.isfinite(action).all():
            return "not finite (nan or inf)"
        if self.discrete:
            one = ((action == 0) | (action == 1)).all() and (action.sum(-1) <= 1).all()
            return None if one else "not one-hot: a single one among zeros, or zeros for none"
        for at, (low, high) in enumerate(self.bounds):
            least, largest = action[..., at].min(), action[..., at].max()
            if least < low - SLACK or largest > high + SLACK:
                return f"number {at} is {least if least < low - SLACK else largest:g}, allowed are {low:g} to {high:g}"
        return None


def moves(
    start: NDArray[Any], end: NDArray[Any], seen_from: NDArray[Any] | None = None, wraps: float | None = None
) -> Vector:
    """(ahead, left, turn) from poses (n, 3) to poses (n, 3), the short way round where the world goes round.

    seen_from: poses in whose axes; those of the start if None.
    """
    x, y, turn = (np.asarray(end, np.float64) - np.asarray(start, np.float64)).T
    if wraps is not None:
        x, y = x - wraps * np.rint(x / wraps), y - wraps * np.rint(y / wraps)
    facing = (start if seen_from is None else seen_from)[:, 2].astype(np.float64)
    cos, sin = np.cos(facing), np.sin(facing)
    turn = (turn + math.pi) % (2 * math.pi) - math.pi
    return np.stack([x * cos + y * sin, y * cos - x * sin, turn], 1)


def estimate(dataset: Dataset) -> Motion:
    """How actions move the pose, from the recorded steps of a dataset that has poses; in the axes that fit better."""
    listed = dataset.episodes("train").episode.head(EPISODES)
    walks = [dataset.walk(int(episode)) for episode in listed]
    choices: tuple[Axes, ...] = ("before", "after")
    fits = [_fit(dataset, walks, axes) for axes in choices]
    return min(fits, key=lambda motion: motion.residual[0] + motion.residual[1])


def _fit(dataset: Dataset, walks: Sequence[tuple[Any, Any, dict[str, Any]]], axes: Axes) -> Motion:
    """Trimmed least squares: steps that lie far from the fit are left out and the rest is fitted again."""
    actions = np.concatenate([dataset.action_vectors(done)[2:] for _, done, _ in walks]).astype(np.float64)
    output, glide = (np.concatenate(parts) for parts in zip(*(_moves(p, m, axes) for p, _, m in walks), strict=True))
    led, width = np.concatenate([actions, np.ones((len(actions), 1))], 1), actions.shape[1] + 1
    inputs = np.concatenate([led, glide[:, :2]], 1)
    used, fit = np.ones(len(output), bool), np.zeros((width + 2, 3))
    for _ in range(ROUNDS):
        fit[:, :2] = np.linalg.lstsq(inputs[used], output[used, :2], rcond=None)[0]
        fit[:width, 2] = np.linalg.lstsq(led[used], output[used, 2], rcond=None)[0]
        off = np.abs(output - inputs @ fit)
        near = (off <= OUTLIER * np.maximum(np.median(off[used], 0), LEAST)).all(1)
        if not near.any() or (near == used).all():
            break
        used = near
    (ahead, left), (across, sideways) = (_rounded(row) for row in fit[width:, :2].T)
    return Motion(
        gain=tuple(tuple(_rounded(row)) for row in fit[: width - 1].T),
        carry=((ahead, left), (across, sideways)),
        drift=_three(fit[width - 1]),
        axes=axes,
        residual=_three(np.sqrt(np.mean(np.square(output - inputs @ fit), 0))),
        kept=round(float(used.mean()), 4),
        steps=len(output),
    )


def _moves(pose: NDArray[Any], meta: dict[str, Any], axes: Axes) -> tuple[Vector, Vector]:
    """Each move of a walk from the second one on, and the one before it, in the same axes."""
    wraps, start, end = meta.get(WRAPS), pose[1:-1], pose[2:]
    facing = end if axes == "after" else start
    return moves(start, end, facing, wraps), moves(pose[:-2], start, facing, wraps)


def _rounded(values: Vector) -> list[float]:
    """To a millionth: what lies below is the rounding of poses, which are fp32."""
    return [round(float(value), 6) + 0.0 for value in values]


def _three(values: Vector) -> Three:
    ahead, left, turn = _rounded(values)
    return ahead, left, turn


def of_dataset(dataset: Dataset) -> Controls:
    """What can be done in the worlds of a dataset: as its manifest says, else by the columns of its actions.

    Of a source that says nothing, the numbers of an action have the names that its columns have, else `action 0`,
    `action 1`, ..., and the digits as keys.
    """
    facts = dataset.manifest.controls
    discrete = dataset.manifest.action_classes is not None
    controls = facts or unnamed(dataset.action_dim, discrete, list(dataset.manifest.action_space))
    if controls.motion is None and dataset.pose_dim == POSE:
        controls = controls.model_copy(update={"motion": estimate(dataset)})
    if not controls.bounds and not controls.discrete:
        controls = controls.model_copy(update={"bounds": recorded_bounds(dataset)})
    return controls


def recorded_bounds(dataset: Dataset) -> tuple[tuple[float, float], ...]:
    """The least and the largest that was recorded of each number of an action, zero between them."""
    listed = dataset.episodes("train").episode.head(EPISODES)
    actions = np.concatenate([dataset.action_vectors(dataset.walk(int(episode))[1]) for episode in listed])
    low, high = np.minimum(actions.min(0), 0), np.maximum(actions.max(0), 0)
    return tuple((float(a), float(b)) for a, b in zip(low, high, strict=True))


def unnamed(width: int, discrete: bool, columns: Sequence[str] = ()) -> Controls:
    """Controls of actions of which a source says no more than their columns; of continuous ones each both ways."""
    called = list(columns) if len(columns) == width else [f"action {at}" for at in range(width)]
    signs = (1.0,) if discrete else (1.0, -1.0)
    rows = [tuple(float(i == at) * sign for i in range(width)) for at in range(width) for sign in signs]
    names = [f"{called[at]}{'' if discrete else ('+', '-')[sign < 0]}" for at in range(width) for sign in signs]
    return Controls(
        controls=tuple(
            Control(name=name, keys=(KEYS[place],) if place < len(KEYS) else (), action=row)
            for place, (name, row) in enumerate(zip(names, rows, strict=True))
        ),
        discrete=discrete,
    )
