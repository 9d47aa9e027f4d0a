"""Memory Maze, 9x9 to 15x15, played: a walker goes to one random place after another in a new maze per seed.

What is recorded is what Memory Maze's own offline data set holds, see `memory_maze`, so both can be mixed: actions
one-hot, pose (x, y, yaw) in maze squares and radians, y up. The target's colour is no border of the picture: it would
tell the model what no camera sees.

The package is made to work here: it wants the dead package gym to be there, and spends most of its time in one Python
loop over contacts. Frames need a software or hardware OpenGL: MUJOCO_GL=egl (the default) or osmesa, same pictures.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import math
import os
import random
import sys
import types
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from longtake.config import Config
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.sources.environment import Environment
from longtake.sources.environments.doom_maze import open_squares, paths_to
from longtake.sources.formats.memory_maze import CONTROLS, FPS, MOVES, POSE, as_yaw

if TYPE_CHECKING:
    from typing import Self

    from longtake.sources.environments.doom_maze import Square

SECONDS = {"9x9": 250, "11x11": 500, "13x13": 750, "15x15": 1000}
"""How long the environment lets an episode be."""
_, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(len(MOVES))
AHEAD, ASLANT = 0.3, 0.8
"""Radians off the way at which the walker turns as it walks, and at which it only turns."""
LABELS = ("target_pos", "targets_pos", "maze_layout")
LIBRARIES = {"egl": ("EGL", "libegl1 libegl-mesa0 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}
INSTALL = "pip install 'longtake[maze]'"


class MemoryMazeEnvConfig(Config):
    """Which maze, and how it is walked."""

    source: Literal["memory-maze"] = "memory-maze"
    """Memory Maze, played."""
    size: Literal["9x9", "11x11", "13x13", "15x15"] = "9x9"
    """Of the maze, in its cells."""
    pixels: int = Field(default=64, ge=8, le=512, description="per side; rendered so, nothing is averaged [pixels]")
    steps: int = Field(default=1000, ge=2, description="frames per episode [frames]")
    random_actions: float = Field(default=0.1, ge=0, le=1, description="share of actions drawn at random [share]")

    @model_validator(mode="after")
    def _ends_in_time(self) -> Self:
        most = int(SECONDS[self.size] * FPS)
        if self.steps > most:
            raise ValueError(f"steps: {self.steps}, but an episode of {self.size} has at most {most} frames")
        return self

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.pixels, self.pixels

    @property
    def fps(self) -> float:
        """Frames per second of world time."""
        return FPS


def about(config: MemoryMazeEnvConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses."""
    columns = {name: f"column {i}, 0 or 1" for i, name in enumerate(MOVES)}
    return {"action_space": columns, "pose": POSE, "controls": CONTROLS}


def require(config: MemoryMazeEnvConfig) -> None:
    """Raise UserError if it cannot be recorded here: a package is missing or too new, or no OpenGL."""
    problems = []
    for package, module in (("memory-maze", "memory_maze"), ("dm-control", "dm_control"), ("mujoco", "mujoco")):
        if importlib.util.find_spec(module) is None:
            problems.append(f"source memory-maze needs the package {package}: {INSTALL}")
        elif package == "mujoco" and not (version := importlib.metadata.version(package)).startswith("3."):
            problems.append(f"source memory-maze needs mujoco 3, not {version}, which dm-control cannot use: {INSTALL}")
    backend = os.environ.get("MUJOCO_GL", "egl")
    if backend not in LIBRARIES:
        problems.append(f"MUJOCO_GL={backend}: allowed are {', '.join(LIBRARIES)}")
    elif ctypes.util.find_library(LIBRARIES[backend][0]) is None:
        problems.append(f"MUJOCO_GL={backend} needs a library of the system: apt-get install {LIBRARIES[backend][1]}")
    if problems:
        raise UserError(*problems)


def generate(config: MemoryMazeEnvConfig, seed: int) -> Episode:
    """One episode in a maze of its own; the same seed gives the same bytes.

    frames uint8 (T, H, W, 3), actions float32 (T, 6) one-hot, pose float32 (T, 3), labels reward (T,), target_pos
    (T, 2) and targets_pos (T, n, 2) in squares, and maze_layout (T, size, size), 1 where one can walk, row y up.
    """
    env = make(config, seed)
    try:
        return _walk(env, config, random.Random(seed), seed)
    finally:
        env.close()


def make(config: MemoryMazeEnvConfig, seed: int) -> Any:
    """The environment, which follows its seed alone."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of a software OpenGL: a task is given one CPU
    tasks = _tasks()
    from absl import logging
    from dm_control.locomotion.props.target_sphere import TargetSphere

    logging.set_verbosity(logging.ERROR)
    TargetSphere._update_activation = _touched
    build = getattr(tasks, f"memory_maze_{config.size}")
    options = {"camera_resolution": config.pixels, "global_observables": True, "target_color_in_image": False}
    return build(seed=seed % 2**32, **options)


def _tasks() -> Any:
    """The package's tasks. To import it, gym has to be there: a stand-in, gone again afterwards."""
    if importlib.util.find_spec("gym") is not None:
        return importlib.import_module("memory_maze.tasks")
    stands = {name: types.ModuleType(name) for name in ("gym", "gym.spaces", "gym.envs", "gym.envs.registration")}
    stands["gym"].__dict__.update(Env=object, Space=object, spaces=stands["gym.spaces"], envs=stands["gym.envs"])
    stands["gym.envs"].__dict__["registration"] = stands["gym.envs.registration"]
    stands["gym.envs.registration"].__dict__["register"] = lambda *arguments, **options: None
    sys.modules.update(stands)
    try:
        return importlib.import_module("memory_maze.tasks")
    finally:
        for name in stands:
            del sys.modules[name]


def _touched(target: Any, physics: Any) -> None:
    """TargetSphere._update_activation without its Python loop over contacts: the same outcome, three times as fast."""
    data = physics.data.ptr
    if target._activated or not data.ncon:
        return
    pairs = data.contact.geom[: data.ncon]  # (contacts, 2)
    hit = (pairs == target._geom_id).any(1)
    if target._specific_collision_geom_ids:
        hit &= np.isin(pairs, list(target._specific_collision_geom_ids)).any(1)
    if hit.any():
        target._activated = True
        physics.bind(target._material).rgba[-1] = 0


def _walk(env: Any, config: MemoryMazeEnvConfig, rng: random.Random, seed: int) -> Episode:
    seen, actions, rewards = [env.reset().observation], [np.zeros(len(MOVES), np.float32)], [0.0]
    walker = _Walker(np.asarray(seen[0]["maze_layout"], bool), config, rng)
    while len(seen) < config.steps:
        action = walker.act(seen[-1]["agent_pos"], seen[-1]["agent_dir"])
        step = env.step(action)
        seen.append(step.observation)
        actions.append(np.eye(len(MOVES), dtype=np.float32)[action])
        rewards.append(float(step.reward or 0))
        if step.last():
            break
    arrays = {name: np.stack([observation[name] for observation in seen]) for name in ("image", *LABELS)}
    at, facing = (np.stack([observation[name] for observation in seen]) for name in ("agent_pos", "agent_dir"))
    labels = {name: arrays[name].astype(np.uint8 if name == "maze_layout" else np.float32) for name in LABELS}
    labels["reward"] = np.array(rewards, np.float32)
    return Episode(arrays["image"], np.stack(actions), as_yaw(at, facing), {"seed": seed, "size": config.size}, labels)


class _Walker:
    """Walks shortest paths to one random square after another, with a share of random actions."""

    def __init__(self, grid: Any, config: MemoryMazeEnvConfig, rng: random.Random) -> None:
        self.grid, self.config, self.rng = grid, config, rng
        self.squares = open_squares(grid)
        self.towards: dict[Square, Square] = {}

    def act(self, at: Any, facing: Any) -> int:
        """The next action, from a position in squares and a direction."""
        here = (math.floor(at[0]), math.floor(at[1]))
        if here not in self.towards:
            self.towards = paths_to(self.grid, self.rng.choice([s for s in self.squares if s != here]))
        if self.rng.random() < self.config.random_actions or here not in self.towards:
            return self.rng.randrange(len(MOVES))
        x, y = (c + 0.5 - p for c, p in zip(self.towards[here], at, strict=True))
        left = math.atan2(facing[0] * y - facing[1] * x, facing[0] * x + facing[1] * y)
        if abs(left) < AHEAD:
            return FORWARD
        if abs(left) < ASLANT:
            return FORWARD_LEFT if left > 0 else FORWARD_RIGHT
        return LEFT if left > 0 else RIGHT


ENVIRONMENT = Environment(MemoryMazeEnvConfig, generate, about, require)
