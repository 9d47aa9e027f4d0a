"""The face of an environment that `longtake collect` plays: what a file of `environments/` has to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from longtake.config import Config
from longtake.datasets.episode import Episode


class EnvironmentConfig(Protocol):
    """What every environment's config says, beside its own settings."""

    @property
    def source(self) -> str:
        """The environment's name, a Literal with itself as default."""

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of a frame."""

    @property
    def steps(self) -> int:
        """Frames of an episode, at most."""

    @property
    def fps(self) -> float:
        """Frames per second of world time."""


@dataclass(frozen=True)
class Environment:
    """How an environment is configured and played.

    config: its settings, an EnvironmentConfig.
    generate: (config, seed) to an episode; the same seed gives the same bytes, on any machine and in any process. Where
        there are several walks in one world: (config, seed, number) to walk `number` of the world of a seed.
    about: what the dataset says of it: `action_space`, a word for each number of an action; `pose`, the names of its
        columns or None; `action_classes`, how many there are, where actions are discrete; `controls`, what they are
        called and which keys they have, see `longtake.datasets.controls`.
    require: raises UserError, with the way out, where it cannot be played here.
    """

    config: type[Config]
    generate: Callable[..., Episode]
    about: Callable[[Any], dict[str, Any]]
    require: Callable[[Any], None]
    several_walks: bool = False
