"""The world of a recorded episode, brought back to life: at the end of what was seen of it, and acted in from there.

Worlds that follow from a seed and actions alone are simulated again; what they come to is compared with the recording.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longtake.datasets.worlds import WALK
from longtake.errors import UserError
from longtake.sources.environments import doom_maze, texture_torus
from longtake.sources.environments.doom_maze import DoomMazeConfig
from longtake.sources.environments.texture_torus import TextureTorusConfig

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

Frame = NDArray[np.uint8]
Pose = NDArray[np.float64]
APART = 1e-3
"""Cells or radians between a simulated pose and the recorded one from which on it is another world."""


class Simulator(Protocol):
    """A real world that is acted in."""

    frame: Frame
    pose: Pose

    def step(self, action: NDArray[Any]) -> None:
        """Do something (A) and see what comes of it."""


class DoomSimulator:
    """A Doom maze."""

    def __init__(self, game: Any, config: DoomMazeConfig) -> None:
        self._game, self._config = game, config
        self._look()

    def step(self, action: NDArray[Any]) -> None:
        """Turn, and walk, unless there is a wall."""
        doom_maze.apply(self._game, np.asarray(action, np.float32), self._config)
        self._look()

    def _look(self) -> None:
        frame, pose = doom_maze.look(self._game, self._config)
        self.frame, self.pose = frame, np.array(pose)


class TorusSimulator:
    """A textured torus, seen from wherever actions lead."""

    def __init__(self, world: texture_torus.World, pose: Pose, time: int) -> None:
        self._world, self._time, self.pose = world, time, pose
        self._look()

    def step(self, action: NDArray[Any]) -> None:
        """Move ahead, to the left, and turn."""
        x, y, yaw = self.pose
        ahead, left, turn = (float(number) for number in action[:3])
        cos, sin, side = np.cos(yaw), np.sin(yaw), self._world.config.side
        free = self._world.config.heading == "free"
        x, y = (x + ahead * cos - left * sin) % side, (y + ahead * sin + left * cos) % side
        self.pose, self._time = np.array([x, y, yaw + turn if free else yaw]), self._time + 1
        self._look()

    def _look(self) -> None:
        self.frame = texture_torus.render(self.pose[None], np.array([self._time]), self._world)[0]


def why_none(dataset: Dataset) -> str | None:
    """Why the worlds of a dataset cannot be simulated here; None where they can."""
    source = _source(dataset)
    if source.get("source") == "texture-torus":
        return None
    if source.get("source") != "doom-maze":
        return f"the worlds of {dataset.name} cannot be simulated again"
    return None if importlib.util.find_spec("vizdoom") else "its simulator needs vizdoom: pip install 'longtake[doom]'"


@contextmanager
def simulated(dataset: Dataset, episode: int, frames: int) -> Iterator[Simulator]:
    """The world of an episode after its first `frames` frames.

    Raises:
        UserError: it cannot be simulated here, or what comes of it is not what was recorded.
    """
    if problem := why_none(dataset):
        raise UserError(problem)
    pose, actions, meta = dataset.walk(episode)
    assert pose is not None
    facts = json.dumps(_source(dataset))
    with contextlib.ExitStack() as stack:
        if _source(dataset)["source"] == "texture-torus":
            simulator: Simulator = _torus(TextureTorusConfig.model_validate_json(facts), pose, meta, frames)
        else:
            config = DoomMazeConfig.model_validate_json(facts)
            simulator = DoomSimulator(stack.enter_context(_game(config, meta)), config)
            for action in actions[1:frames]:
                simulator.step(action)
        if np.abs(simulator.pose[:2] - pose[frames - 1, :2]).max() > APART:
            raise UserError(f"episode {episode} of {dataset.name}: its simulator comes out elsewhere than was recorded")
        yield simulator


def _source(dataset: Dataset) -> Mapping[str, Any]:
    """The part of a collection's config that says which worlds it is of; empty for what was not collected."""
    source = dataset.manifest.recipe.get("source")
    return source if isinstance(source, Mapping) else {}


def _torus(config: TextureTorusConfig, pose: NDArray[Any], meta: Mapping[str, Any], frames: int) -> TorusSimulator:
    world = texture_torus.make_world(config, int(meta["seed"]))
    begin = int(meta.get(WALK, 0)) * config.steps
    return TorusSimulator(world, pose[frames - 1].astype(np.float64), begin + frames - 1)


@contextmanager
def _game(config: DoomMazeConfig, meta: Mapping[str, Any]) -> Iterator[Any]:
    """The engine at the beginning of a walk."""
    seed = int(meta["seed"])
    _, text, _ = doom_maze.build(config, seed, int(meta.get(WALK, 0)))
    with tempfile.TemporaryDirectory(prefix="longtake-doom-") as folder:
        wad = Path(folder, "maze.wad")
        wad.write_bytes(doom_maze.wad_bytes(text))
        game = doom_maze.start(wad, config, seed)
        try:
            game.make_action([0.0, 0.0], doom_maze.WARM_UP_TICS)
            yield game
        finally:
            game.close()
