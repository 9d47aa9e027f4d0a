"""What the model is told per frame: a pose, actions, a state, a task, the time; as one value and one embedding.

Letters: b clips, t frames, A action width, S state width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtake.models.config import ModelConfig
from longtake.models.normalisation import Floats, Normalisation
from longtake.motion import PLACE_WIDTHS, POSE_WIDTHS, PoseKind

WAVELENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the Fourier features of a place, in cells: the shortest tells neighbouring places apart. How many units of the
recording a cell is says `longtake.models.normalisation`."""
HARMONICS = (1, 2, 3, 4)
"""Of the heading: the fourth changes sign within 45 degrees."""
OCTAVES = (1, 2)
"""Of the numbers of a rotation in space, from -1 to 1: what tells small turns apart."""
SECONDS = tuple(2.0**power for power in range(-3, 9))
"""Wavelengths of the Fourier features of the time."""


@dataclass(frozen=True)
class Conditions:
    """Per-frame conditions; None where the source has none.

    `pose` (b, t, P) fp32, P by its kind (POSE_WIDTHS). `actions` (b, t, A) fp32: numbers, or one-hot where they are
    discrete, zeros for the null action. `dropped` (b, t) bool: frames that are told nothing (classifier-free guidance).
    `state` (b, t, S) fp32. `task` (b, t) int64: a row of the model's table of tasks, 0 for none; the same in all
    frames. `time` (b, t) fp32: seconds since the clip's first frame.
    """

    pose: Tensor | None = None
    actions: Tensor | None = None
    dropped: Tensor | None = None
    state: Tensor | None = None
    task: Tensor | None = None
    time: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of frames that are told something."""
        parts = (self.pose, self.actions, self.state, self.task, self.time)
        return max((part.shape[1] for part in parts if part is not None), default=0)

    @property
    def size(self) -> int:
        """Number of clips."""
        parts = (self.pose, self.actions, self.state, self.task, self.time)
        return max((len(part) for part in parts if part is not None), default=0)

    def joined(self, other: Conditions, at: int) -> Conditions:
        """These for the frames before `at`, and another's from there on."""
        mine, theirs = self._parts(), other._parts()
        return Conditions(
            *(
                None if one is None or two is None else torch.cat([one[:, :at], two[:, at:]], 1)
                for one, two in zip(mine, theirs, strict=True)
            )
        )

    def frames(self, start: int, stop: int) -> Conditions:
        """The conditions of frames start..stop-1."""
        return self._map(lambda values: values[:, start:stop])

    def clips(self, start: int, stop: int) -> Conditions:
        """The conditions of clips start..stop-1."""
        return self._map(lambda values: values[start:stop])

    def chosen(self, clips: Tensor) -> Conditions:
        """The conditions of these clips, in that order."""
        return self._map(lambda values: values[clips])

    def taken(self, frames: Tensor) -> Conditions:
        """Those of the frames (b, t) of each clip, in that order."""
        return self._map(lambda values: values[torch.arange(len(frames), device=frames.device)[:, None], frames])

    @staticmethod
    def side_by_side(parts: Sequence[Conditions]) -> Conditions:
        """The clips of all of them, which are told the same kinds of things, as one."""
        columns = zip(*(part._parts() for part in parts), strict=True)
        return Conditions(*(None if any(one is None for one in c) else torch.cat(c) for c in columns))

    def to(self, device: torch.device | str) -> Conditions:
        """The same conditions on another device."""
        return self._map(lambda values: values.to(device))

    def drop(self, dropped: Tensor) -> Conditions:
        """The same conditions, kept from the frames where `dropped` (b, t) is true."""
        return replace(self, dropped=dropped)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        return Conditions(*(None if part is None else function(part) for part in self._parts()))

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.pose, self.actions, self.dropped, self.state, self.task, self.time


def from_recording(
    normalisation: Normalisation,
    actions: Floats,
    led: NDArray[np.bool_],
    *,
    pose: Floats | None = None,
    state: Floats | None = None,
    tasks: Sequence[str | None] | None = None,
    time: Floats | None = None,
) -> Conditions:
    """Conditions of clips as they were recorded, in the scale of a model's training data.

    Args:
        normalisation: how the model is told what was recorded.
        actions: (b, t, A), stacked where there is a stride; those that led to a frame where `led` (b, t) is true.
        led: false where no action led to a frame.
        pose: relative to each clip's first frame already (b, t, P).
        state: (b, t, S).
        tasks: one per clip.
        time: seconds (b, t).
    """
    rows = None if tasks is None else torch.from_numpy(normalisation.task_rows(tasks))
    return Conditions(
        pose=None if pose is None else torch.from_numpy(normalisation.in_cells(pose)),
        actions=torch.from_numpy(normalisation.told_actions(actions, led)),
        state=None if state is None else torch.from_numpy(normalisation.told_state(state)),
        task=None if rows is None else rows[:, None].expand(-1, actions.shape[1]),
        time=None if time is None else torch.from_numpy(time),
    )


def pose_features(pose: Tensor) -> Tensor:
    """Fourier features of a relative pose of any kind: (..., P) → (..., `pose_feature_width`)."""
    width = PLACE_WIDTHS[pose.shape[-1]]
    place, turn = pose[..., :width], pose[..., width:]
    phases = place[..., None] * (2 * math.pi / torch.tensor(WAVELENGTHS, device=pose.device))
    features = [place / WAVELENGTHS[-1], phases.sin().flatten(-2), phases.cos().flatten(-2)]
    if turn.shape[-1] == 2:
        angle = torch.atan2(turn[..., 1], turn[..., 0])[..., None] * torch.tensor(HARMONICS, device=pose.device)
        features += [angle.sin(), angle.cos()]
    elif turn.shape[-1]:
        waves = turn[..., None] * (math.pi * torch.tensor(OCTAVES, device=pose.device))
        features += [turn, waves.sin().flatten(-2), waves.cos().flatten(-2)]
    return torch.cat(features, -1)


def pose_feature_width(kind: PoseKind) -> int:
    """Numbers of `pose_features` of a kind of pose."""
    width = POSE_WIDTHS[kind]
    turn = {"planar": 2 * len(HARMONICS), "place": 0, "se3": 6 * (1 + 2 * len(OCTAVES))}[kind]
    return PLACE_WIDTHS[width] * (1 + 2 * len(WAVELENGTHS)) + turn


def time_features(time: Tensor) -> Tensor:
    """Fourier features of seconds: (...) → (..., 2·wavelengths)."""
    phases = time[..., None] * (2 * math.pi / torch.tensor(SECONDS, device=time.device))
    return torch.cat([phases.sin(), phases.cos()], -1)


def pose_gap(one: Tensor, other: Tensor) -> Tensor:
    """How far relative poses (..., P) are apart: cells, plus half the chord of the turn."""
    width = PLACE_WIDTHS[one.shape[-1]]
    gap = one - other
    turn = gap[..., width:]
    if turn.shape[-1] == 6:  # the third column follows from two; so measured a turn counts as one in the plane
        first = torch.linalg.cross(one[..., 3:6], one[..., 6:9])
        third = first - torch.linalg.cross(other[..., 3:6], other[..., 6:9])
        turn = torch.cat([turn, third], -1) / math.sqrt(2)
    apart: Tensor = gap[..., :width].norm(dim=-1) + turn.norm(dim=-1) / 2
    return apart


class ConditionEmbedding(nn.Module):
    """Conditions → one vector per frame (b, t, D): a small MLP per kind, or a table of discrete actions, summed.

    Frames that are told nothing get a vector of their own, learned where conditions are dropped in training.
    """

    def __init__(self, config: ModelConfig, dim: int) -> None:
        super().__init__()
        nets: dict[str, Callable[[], nn.Module]] = {
            "pose": lambda: _mlp(pose_feature_width(config.pose), dim),
            "actions": lambda: (
                nn.Embedding(config.action_dim + 1, dim)  # row 0: the null action
                if config.actions == "discrete"
                else _mlp(config.action_dim, dim)
            ),
            "state": lambda: _mlp(config.state_dim, dim),
            "task": lambda: nn.Embedding(config.tasks + 1, dim),  # row 0: a task that it was not trained on
            "time": lambda: _mlp(2 * len(SECONDS), dim),
        }
        self.embed = nn.ModuleDict({kind: nets[kind]() for kind in config.condition_kinds})
        self.nothing = nn.Parameter(torch.zeros(dim))

    def forward(self, conditions: Conditions) -> Tensor:
        """Embed.

        Raises:
            ValueError: a kind that the model was built for is missing, or a discrete action is none of the model's.
        """
        total = self._sum(conditions)
        dropped = conditions.dropped
        if dropped is None:  # a gradient of zero, not none, for every rank to share
            dropped = torch.zeros(total.shape[:2], dtype=torch.bool, device=total.device)
        return torch.where(dropped[..., None], self.nothing, total)

    def _sum(self, conditions: Conditions) -> Tensor:
        vectors = []
        for kind, net in self.embed.items():
            values = getattr(conditions, kind)
            if values is None:
                raise ValueError(
                    f"conditions.{kind}: missing; this model was built with conditions: {'+'.join(self.embed)}"
                )
            if kind in _FEATURES:
                values = _FEATURES[kind](values)
            elif kind == "actions" and isinstance(net, nn.Embedding):
                values = _discrete(values, net.num_embeddings - 1)
            vectors.append(net(values))
        return torch.stack(vectors).sum(0) if len(vectors) > 1 else vectors[0]


_FEATURES: dict[str, Callable[[Tensor], Tensor]] = {"pose": pose_features, "time": time_features}


def _discrete(actions: Tensor, count: int) -> Tensor:
    """Rows of the table for one-hot actions (b, t, count): row 0 for the null action, all zeros."""
    known = actions.device.type == "cpu"  # elsewhere a look at the values would make the device wait
    if actions.shape[-1] != count or (known and not _is_one_hot(actions)):
        raise ValueError(
            f"conditions.actions: {tuple(actions.shape)} of {actions.dtype}, but this model takes {count} discrete "
            f"actions: one-hot vectors of {count} numbers, all zeros for none"
        )
    return torch.where(actions.any(-1), actions.argmax(-1) + 1, 0)


def _is_one_hot(vectors: Tensor) -> bool:
    """Ones and zeros, at most a single one in each."""
    return bool(((vectors == 0) | (vectors == 1)).all() and (vectors.sum(-1) <= 1).all())


class NoiseEmbedding(nn.Module):
    """Noise level in [0, 1], (b, t) → (b, t, D): sinusoids, then an MLP."""

    def __init__(self, dim: int, bands: int = 16) -> None:
        super().__init__()
        self.bands = bands
        self.mlp = _mlp(2 * bands, dim)

    def forward(self, noise_level: Tensor) -> Tensor:
        """Embed."""
        frequencies = math.pi * 2 ** torch.linspace(0, 6, self.bands, device=noise_level.device)
        phases = noise_level.float()[..., None] * frequencies
        vector: Tensor = self.mlp(torch.cat([phases.sin(), phases.cos()], -1))
        return vector


def _mlp(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.SiLU(), nn.Linear(width_out, width_out))
