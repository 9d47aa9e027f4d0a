"""Recording from Python: any Gymnasium environment and any policy, as a dataset or behind one that is there.

    import longtake
    data = longtake.record(env, policy, store="./store", name="mine", episodes=20, fps=15)
    data = longtake.record(env, policy, store="./store", name="mine", episodes=5, fps=15, append=True)

In this process, one episode after another; `longtake collect` is for many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from longtake.datasets.append import append as append_to
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter, split_sizes
from longtake.errors import UserError
from longtake.motion import PoseKind
from longtake.storage.store import Store, open_store

if TYPE_CHECKING:
    import gymnasium

    from longtake.datasets.shard import Array

PER_SHARD = 16  # episodes


def record(
    env: gymnasium.Env[Any, Any],
    policy: Callable[[Any], Any],
    *,
    store: Store | str,
    name: str,
    episodes: int,
    fps: float,
    steps: int = 1000,
    seed: int = 0,
    frame: Callable[[gymnasium.Env[Any, Any], Any], Array] | None = None,
    pose: Callable[[gymnasium.Env[Any, Any]], Any] | None = None,
    pose_kind: PoseKind = "planar",
    pose_names: tuple[str, ...] = ("x", "y", "yaw (radians)"),
    task: str | None = None,
    append: bool = False,
) -> Dataset:
    """Play episodes and keep them: what was seen, the actions that led there, rewards, and poses where they are told.

    Args:
        env: with Discrete or Box actions; made with render_mode="rgb_array" unless `frame` says what is seen.
        policy: what is seen by the agent (its observation) → its action.
        steps: frames of an episode, at most; fewer where the environment ends it.
        seed: of the first episode; each has the next.
        frame: environment and observation → uint8 (H, W, 3); None: what it renders.
        pose: environment → the numbers of a pose of `pose_kind`, called `pose_names`.
        task: what the episodes are told to do.
        append: put them behind the dataset of that name instead of making it.

    Raises:
        UserError: too few episodes for three splits, frames or actions that cannot be kept, or a name that is taken.
    """
    place = open_store(store) if isinstance(store, str) else store
    numbers = range(seed, seed + episodes)

    def play(some: range) -> Iterator[Episode]:
        return (_play(env, policy, number, steps, frame, pose, task) for number in some)

    if append:
        return append_to(Dataset(place, name), play(numbers))
    split_sizes(episodes, 0.1, 0.1)
    space = env.action_space
    writer = DatasetWriter(
        place,
        name,
        recipe={"recorded": {"environment": _named(env), "episodes": episodes, "steps": steps, "seed": seed}},
        fps=fps,
        action_space={"action": str(space)},
        pose=None if pose is None else pose_names,
        pose_kind=pose_kind,
        action_classes=int(space.n) if hasattr(space, "n") else None,
    )
    if writer.claim():
        raise UserError(
            f"dataset {name!r} is there already: choose another name, or put episodes behind it (append=True)"
        )
    shards = [numbers[first : first + PER_SHARD] for first in range(0, episodes, PER_SHARD)]
    for number, some in enumerate(shards):
        writer.write_shard(number, play(some))
    return writer.finalize(len(shards))


def _named(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _play(
    env: gymnasium.Env[Any, Any],
    policy: Callable[[Any], Any],
    seed: int,
    steps: int,
    frame: Callable[[gymnasium.Env[Any, Any], Any], Array] | None,
    pose: Callable[[gymnasium.Env[Any, Any]], Any] | None,
    task: str | None,
) -> Episode:
    """One episode, from a reset to its end."""
    seen, _ = env.reset(seed=seed)
    actions, rewards = [_kept(env, None)], [0.0]
    frames, poses = [_frame(env, seen, frame)], [pose(env)] if pose else []
    ended = False
    while len(frames) < steps and not ended:
        action = policy(seen)
        seen, reward, terminated, truncated, _ = env.step(action)
        ended = bool(terminated or truncated)
        frames.append(_frame(env, seen, frame))
        actions.append(_kept(env, action))
        rewards.append(float(reward))
        poses += [pose(env)] if pose else []
    facts = {"seed": seed} | ({} if task is None else {"task": task})
    where = np.asarray(poses, np.float32) if pose else None
    return Episode(np.stack(frames), np.stack(actions), where, facts, {"reward": np.array(rewards, np.float32)})


def _frame(env: gymnasium.Env[Any, Any], seen: Any, frame: Callable[..., Array] | None) -> Array:
    picture = np.asarray(env.render() if frame is None else frame(env, seen))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        advice = "make it with render_mode='rgb_array', or say what is seen with frame="
        raise UserError(f"frames: {picture.dtype} {picture.shape}, expected uint8 (H, W, 3): {advice}")
    return picture.copy()


def _kept(env: gymnasium.Env[Any, Any], action: Any) -> Array:
    """An action as an episode has it: a class from 0 on, or one row; None is the null action."""
    space: Any = env.action_space
    if hasattr(space, "n"):
        return np.array(-1 if action is None else int(action) - int(getattr(space, "start", 0)))
    width = int(np.prod(space.shape or ()))
    if not width:
        raise UserError(f"actions: {space}, expected Discrete or Box")
    return np.zeros(width, np.float32) if action is None else np.asarray(action, np.float32).reshape(-1)
