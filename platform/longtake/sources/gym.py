"""Any Gymnasium environment that renders RGB, Atari games among them, acted in at random with held actions.

`environment` is an id as `gymnasium.make` takes it; `MODULE:ID` imports the module that registers it first, so
`ale_py:ALE/Pong-v5` is Pong. Frames are what the environment renders, area-averaged. An episode ends when the
environment ends it, or after `steps` frames. There is no pose: nothing common tells where one is.
"""

from __future__ import annotations

import importlib.util
import random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.episodes import Episode
from longtake.errors import UserError
from longtake.shards import Array
from longtake.sources.doom_maze import Pixels
from longtake.sources.pixels import shrink

if TYPE_CHECKING:
    import gymnasium


class GymConfig(Config):
    """Which environment, and how it is acted in."""

    source: Literal["gym"] = "gym"
    environment: str = Field(description="id, or MODULE:ID to import what registers it: ale_py:ALE/Pong-v5")
    options: dict[str, bool | int | float | str | None] = Field({}, description="further arguments of the environment")
    resolution: tuple[Pixels, Pixels] = Field(default=(64, 64), description="(height, width), area-averaged")
    steps: int = Field(default=512, ge=2, description="frames per episode, at most")
    hold: float = Field(default=4.0, ge=1, description="mean number of frames for which an action is kept")
    fps: float = Field(default=15.0, gt=0, description="frames per second of world time")


def about(config: GymConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses. Raises UserError for an environment that cannot be recorded."""
    env = _make(config)
    try:
        space = env.action_space
        classes = int(space.n) if hasattr(space, "n") else None
        return {"action_space": {"action": str(space)}, "pose": None, "action_classes": classes}
    finally:
        env.close()


def require(config: GymConfig) -> None:
    """Raise UserError if the environment cannot be recorded here."""
    about(config)


def _make(config: GymConfig) -> gymnasium.Env[Any, Any]:
    module = config.environment.partition(":")[0] if ":" in config.environment else "gymnasium"
    for name in ("gymnasium", module):
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            extra = ": pip install 'longtake[atari]'" if name in ("gymnasium", "ale_py") else ""
            raise UserError(f"source.environment: {config.environment} needs the package {name}{extra}")
    import gymnasium

    options: dict[str, Any] = {"render_mode": "rgb_array", "disable_env_checker": True, **config.options}
    try:
        env = gymnasium.make(config.environment, **options)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"source.environment: {config.environment}: {error}") from error
    if not isinstance(env.action_space, (gymnasium.spaces.Discrete, gymnasium.spaces.Box)):
        env.close()
        raise UserError(
            f"source.environment: {config.environment}: actions are {env.action_space}, expected Discrete or Box"
        )
    return env


def generate(config: GymConfig, seed: int) -> Episode:
    """One episode; the same seed gives the same bytes where the environment keeps to its seed.

    frames uint8 (T, H, W, 3), actions int64 (T,) or float32 (T, A), the label reward float32 (T,).
    """
    env = _make(config)
    try:
        return _act(env, config, seed)
    finally:
        env.close()


def _act(env: gymnasium.Env[Any, Any], config: GymConfig, seed: int) -> Episode:
    start = seed % 2**31
    env.reset(seed=start)
    env.action_space.seed(start)
    rng = random.Random(seed)
    frames, actions, rewards = [_seen(env, config)], [_none(env)], [0.0]
    action = env.action_space.sample()
    while len(frames) < config.steps:
        if rng.random() * config.hold < 1:
            action = env.action_space.sample()
        _, reward, terminated, truncated, _ = env.step(action)
        frames.append(_seen(env, config))
        actions.append(_kept(env, action))
        rewards.append(float(reward))
        if terminated or truncated:
            break
    labels = {"reward": np.array(rewards, np.float32)}
    return Episode(np.stack(frames), np.stack(actions), meta={"seed": seed}, labels=labels)


def _none(env: gymnasium.Env[Any, Any]) -> Array:
    """The action that leads into a first frame."""
    if hasattr(env.action_space, "n"):
        return np.array(-1)
    return np.zeros(int(np.prod(env.action_space.shape or ())), np.float32)


def _kept(env: gymnasium.Env[Any, Any], action: Any) -> Array:
    """Discrete actions from 0 on, continuous ones as one row."""
    if hasattr(env.action_space, "n"):
        return np.array(int(action) - int(getattr(env.action_space, "start", 0)))
    return np.asarray(action, np.float32).reshape(-1)


def _seen(env: gymnasium.Env[Any, Any], config: GymConfig) -> Array:
    picture = np.asarray(env.render())
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise UserError(
            f"source.environment: {config.environment} renders {picture.dtype} {picture.shape}, "
            "expected uint8 (H, W, 3)"
        )
    return shrink(picture, config.resolution)
