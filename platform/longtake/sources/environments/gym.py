"""Any Gymnasium environment that renders RGB, Atari games among them, acted in by a script.

`environment` is an id as `gymnasium.make` takes it; `MODULE:ID` imports the module that registers it first, so
`ale_py:ALE/Pong-v5` is Pong; `MODULE:CLASS` is an entry point, which need not be registered. The script `held` keeps
random actions for a while; `return` makes such an excursion and then takes it back, action by action, so that the same
places are seen again at growing distances: of discrete actions it has to be told which undoes which.

Frames are what the environment renders, area-averaged. An episode ends when the environment ends it, or after `steps`
frames. There is no pose: nothing common tells where one is.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from longtake.config import Config
from longtake.datasets.controls import Control, Controls
from longtake.datasets.episode import Episode
from longtake.datasets.shard import Array
from longtake.errors import UserError
from longtake.sources.environment import Environment
from longtake.sources.environments.doom_maze import Pixels
from longtake.sources.resize import shrink

if TYPE_CHECKING:
    import gymnasium


class GymConfig(Config):
    """Which environment, and how it is acted in."""

    source: Literal["gym"] = "gym"
    """Any Gymnasium environment that renders RGB."""
    environment: str = Field(
        description="id, MODULE:ID (imports what registers it: ale_py:ALE/Pong-v5) or MODULE:CLASS"
    )
    options: dict[str, bool | int | float | str | None] = Field(
        {}, description="further arguments of the environment [of the environment]"
    )
    resolution: tuple[Pixels, Pixels] = Field(default=(64, 64), description="(height, width), area-averaged [pixels]")
    steps: int = Field(default=512, ge=2, description="frames per episode, at most [frames]")
    hold: float = Field(default=4.0, ge=1, description="mean number of frames for which an action is kept [frames]")
    policy: Literal["held", "return"] = Field("held", description="random actions, or excursions and the way back")
    excursion: int = Field(default=64, ge=1, description="actions of an excursion, before it is taken back [actions]")
    opposites: list[int] | None = Field(
        None, description="of discrete actions 0, 1, ..., the one that undoes each [action]"
    )
    fps: float = Field(default=15.0, gt=0, description="frames per second of world time [frames/s]")


def about(config: GymConfig) -> dict[str, Any]:
    """What the dataset says of actions and poses. Raises UserError for an environment that cannot be recorded."""
    env = _make(config)
    try:
        space = env.action_space
        classes = int(space.n) if hasattr(space, "n") else None
        facts = {"action_space": {"action": str(space)}, "pose": None, "action_classes": classes}
        return facts | {"controls": _controls(env)}
    finally:
        env.close()


ARROWS = {"UP": "ArrowUp", "DOWN": "ArrowDown", "LEFT": "ArrowLeft", "RIGHT": "ArrowRight", "FIRE": " "}


def _controls(env: gymnasium.Env[Any, Any]) -> Controls | None:
    """What the actions are called, where the environment tells, as Atari's do: UPRIGHT is up and right at once."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    if meanings is None:
        return None
    names: list[str] = meanings()
    rows = np.eye(len(names)).tolist()
    keys = {name: "+".join(key for word, key in ARROWS.items() if word in name) for name in names}
    controls = [
        Control(name=n.lower(), keys=tuple(filter(None, [keys[n]])), action=tuple(r))
        for n, r in zip(names, rows, strict=True)
    ]
    return Controls(controls=tuple(controls), discrete=True)


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
        env = gymnasium.make(_registered(config.environment), **options)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"source.environment: {config.environment}: {error}") from error
    if not isinstance(env.action_space, (gymnasium.spaces.Discrete, gymnasium.spaces.Box)):
        env.close()
        raise UserError(
            f"source.environment: {config.environment}: actions are {env.action_space}, expected Discrete or Box"
        )
    if config.policy == "return" and (problem := _no_way_back(config, env.action_space)):
        env.close()
        raise UserError(problem)
    return env


def _registered(environment: str) -> Any:
    """What gymnasium.make takes: the id, or of an entry point what would have been registered."""
    from gymnasium.envs.registration import EnvSpec

    module, _, name = environment.partition(":")
    if name and hasattr(importlib.import_module(module), name):
        return EnvSpec(id=f"{name}-v0", entry_point=environment)
    return environment


def _no_way_back(config: GymConfig, space: Any) -> str:
    """Why actions of a space cannot be taken back; nothing if they can."""
    if not hasattr(space, "n"):
        whole = np.array_equal(space.low, -space.high)
        return "" if whole else f"source.policy: return takes actions back by their sign, but they are {space}"
    classes = list(range(int(space.n)))
    if config.opposites is None or sorted(config.opposites) != classes:
        given = "missing" if config.opposites is None else str(config.opposites)
        return (
            f"source.opposites: {given}, but policy return needs one for each of actions 0 to {classes[-1]}, each once"
        )
    return ""


def generate(config: GymConfig, seed: int) -> Episode:
    """One episode; the same seed gives the same bytes where the environment keeps to its seed.

    frames uint8 (T, H, W, 3), actions int64 (T,) or float32 (T, A), the labels reward float32 (T,) and end bool (T,):
    whether the environment ended with this frame, not for want of time.
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
    frames, actions, rewards, ends = [_seen(env, config)], [_none(env)], [0.0], [False]
    script = _held(env, config, random.Random(seed))
    if config.policy == "return":
        script = _there_and_back(env, config, script)
    while len(frames) < config.steps:
        action = next(script)
        _, reward, terminated, truncated, _ = env.step(action)
        frames.append(_seen(env, config))
        actions.append(_kept(env, action))
        rewards.append(float(reward))
        ends.append(bool(terminated))
        if terminated or truncated:
            break
    labels = {"reward": np.array(rewards, np.float32), "end": np.array(ends)}
    return Episode(np.stack(frames), np.stack(actions), meta={"seed": seed}, labels=labels)


def _held(env: gymnasium.Env[Any, Any], config: GymConfig, rng: random.Random) -> Iterator[Any]:
    """Random actions, each kept for some frames."""
    action = env.action_space.sample()
    while True:
        if rng.random() * config.hold < 1:
            action = env.action_space.sample()
        yield action


def _there_and_back(env: gymnasium.Env[Any, Any], config: GymConfig, script: Iterator[Any]) -> Iterator[Any]:
    """Excursions of a script, each taken back before the next."""
    first = int(getattr(env.action_space, "start", 0))
    while True:
        away = list(itertools.islice(script, config.excursion))
        yield from away
        for action in reversed(away):
            yield -action if config.opposites is None else first + config.opposites[int(action) - first]


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


ENVIRONMENT = Environment(GymConfig, generate, about, require)
