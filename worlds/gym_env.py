"""A learned world as a Gymnasium environment, alone or many in one batch: `longtake/World-v0`.

    env = gymnasium.make("longtake/World-v0", run="latest", store="store", context=16, horizon=64)
    envs = gymnasium.make_vec("longtake/World-v0", num_envs=64, vectorization_mode="vector_entry_point", run="latest")

An episode begins after a context from the dataset, drawn by the seed, and ends after `horizon` steps, or where
`ended` says so. `reward` and `ended` are functions of (picture, info), or `dataset`: heads fitted to what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from longtake.errors import UserError
from longtake.models.config import SamplerConfig
from longtake.storage.store import open_store
from longtake.worlds import heads
from longtake.worlds.world import World

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

Frames = NDArray[np.uint8]
Measure = Callable[[Frames, dict[str, Any]], float]
"""From a picture (H, W, 3) and the step's `pose`, `step` and picture `before` to a number or truth value."""
END = 0.5
"""Above which a head's value of `end` ends an episode."""
LARGEST_SEED = 2**31


@dataclass(frozen=True)
class Episodes:
    """Contexts of a dataset, as many frames each."""

    dataset: Dataset
    context: int
    split: str

    def draw(self, rng: np.random.Generator) -> tuple[Frames, NDArray[np.float32], NDArray[Any] | None]:
        """Frames, action vectors and poses of a context; raises UserError where no episode is long enough."""
        listed = self.dataset.episodes(self.split)
        listed = listed[listed.length >= self.context]
        if listed.empty:
            raise UserError(
                f"context: {self.context} frames, but no {self.split} episode of {self.dataset.name} has so many"
            )
        row = listed.iloc[int(rng.integers(len(listed)))]
        start = int(rng.integers(int(row.length) - self.context + 1))
        episode = self.dataset.read(int(row.episode), start, start + self.context)
        return episode.frames, self.dataset.action_vectors(episode.actions), episode.pose


class Settings(TypedDict, total=False):
    """What both environments take by keyword, see this module; the defaults are those of `_Rules`."""

    context: int
    horizon: int
    split: str
    reward: Measure | Literal["dataset"] | None
    ended: Measure | Literal["dataset"] | None
    sampler: SamplerConfig | None
    device: str


class _Rules:
    """The world, where episodes begin, and what is paid: the same for one environment and for many."""

    def __init__(
        self,
        run: str,
        store: str,
        streams: int,
        *,
        context: int = 16,
        horizon: int = 64,
        split: str = "test",
        reward: Measure | Literal["dataset"] | None = None,
        ended: Measure | Literal["dataset"] | None = None,
        sampler: SamplerConfig | None = None,
        device: str = "cpu",
    ) -> None:
        self.world = World.load(run, store=store, device=device, streams=streams, sampler=sampler, states=0)
        dataset = open_store(store).dataset(self.world.about.dataset)
        if dataset.manifest.latents is not None:
            dataset = open_store(store).dataset(dataset.manifest.latents.dataset)
        if horizon < 1 or context < 1:
            raise UserError(f"context: {context}, horizon: {horizon}; at least one frame each")
        self.episodes, self.horizon = Episodes(dataset, context, split), horizon
        self.reward, self.ended = _measure(reward, dataset, "reward"), _measure(ended, dataset, "end")
        controls = self.world.controls
        self.observation_space = spaces.Box(0, 255, self.world.frame_shape, np.uint8)
        self.action_space: spaces.Space[Any]
        if controls.discrete:
            self.action_space = spaces.Discrete(len(controls.controls))
        else:
            low, high = np.array(controls.bounds, np.float32).T
            self.action_space = spaces.Box(low, high, dtype=np.float32)

    def begin(self, rngs: Sequence[np.random.Generator]) -> tuple[World, Frames]:
        """A world for so many streams, each after a context of its own, and the last picture of each."""
        shown = [self.episodes.draw(rng) for rng in rngs]
        world = self.world.fresh([int(rng.integers(LARGEST_SEED)) for rng in rngs])
        frames, actions = np.stack([one[0] for one in shown]), np.stack([one[1] for one in shown])
        poses = [one[2] for one in shown]
        facts = None if any(pose is None for pose in poses) else np.stack([p for p in poses if p is not None])
        world.observe(frames, actions=actions, pose=facts)
        return world, frames[:, -1]

    def vectors(self, actions: NDArray[Any]) -> NDArray[np.float32]:
        """Actions of the space (b,) or (b, A) as the world takes them."""
        if not self.world.controls.discrete:
            return np.asarray(actions, np.float32)
        return np.array([self.world.controls.controls[int(a)].action for a in actions], np.float32)

    def judge(self, before: Frames, frame: Frames, pose: Any, step: int) -> tuple[float, bool, bool, dict[str, Any]]:
        """Reward, whether it ended, whether its time is over, and the info of one stream."""
        info = {"before": before, "pose": pose, "step": step}
        ended = self.ended is not None and float(self.ended(frame, info)) > END
        return float(self.reward(frame, info)) if self.reward else 0.0, ended, step >= self.horizon, info_of(pose, step)


def info_of(pose: Any, step: int) -> dict[str, Any]:
    """What an agent is told beside the picture."""
    return {"step": step} if pose is None else {"step": step, "pose": np.array(pose)}


def _measure(wanted: Measure | str | None, dataset: Dataset, label: str) -> Measure | None:
    if wanted is None or callable(wanted):
        return wanted
    if wanted != "dataset":
        raise UserError(f"{label}: {wanted!r}; a function of (picture, info), or 'dataset' for what was recorded")
    head = heads.fit(dataset, label)
    return lambda frame, info: head.of(info["before"], frame)


class WorldEnv(gymnasium.Env[Frames, Any]):
    """One stream. An observation is a picture, an action one of the world's: an index, or its numbers."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        run: str = "latest",
        store: str = "store",
        *,
        render_mode: str | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Arguments: see this module. Raises UserError."""
        self._rules = _Rules(run, store, 1, **settings)
        self.observation_space, self.action_space = self._rules.observation_space, self._rules.action_space
        self.metadata = self.metadata | {"render_fps": self._rules.world.fps}
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        """Begin after another context; the same seed, the same episode."""
        super().reset(seed=seed)
        self._world, frames = self._rules.begin([self.np_random])
        self._frame, self._step = frames[0], 0
        return self._frame, info_of(self._pose(), 0)

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """The next picture."""
        before, self._step = self._frame, self._step + 1
        self._frame = self._world.step(self._rules.vectors(np.asarray(action)[None]))[0]
        return self._frame, *self._rules.judge(before, self._frame, self._pose(), self._step)

    def render(self) -> Frames:
        """The last picture."""
        return np.asarray(self._frame, np.uint8)

    def _pose(self) -> Any:
        return None if self._world.pose is None else self._world.pose[0]


class WorldVectorEnv(VectorEnv[Frames, Any, NDArray[Any]]):
    """Streams that share one batch, and so one forward pass a step. One that ended begins anew with the next step."""

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        run: str = "latest",
        store: str = "store",
        *,
        render_mode: str | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        """Arguments: see this module. Raises UserError."""
        self._rules = _Rules(run, store, num_envs, **settings)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space, self.single_action_space = (
            self._rules.observation_space,
            self._rules.action_space,
        )
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Begin all of them; stream i with seed + i, or the i-th seed, does what an environment of that seed does."""
        if seed is not None or not hasattr(self, "_rngs"):
            seeds = (
                [None if seed is None else seed + i for i in range(self.num_envs)]
                if not isinstance(seed, Sequence)
                else seed
            )
            self._rngs = [gymnasium.utils.seeding.np_random(one)[0] for one in seeds]
        self._world, self._frames = self._rules.begin(self._rngs)
        self._steps, self._over = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, bool)
        return self._frames.copy(), self._infos()

    def step(self, actions: Any) -> tuple[Frames, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """The next picture of each; those that had ended show the last picture of a new context, for no reward."""
        vectors, before, anew = self._rules.vectors(np.asarray(actions)), self._frames, self._over.nonzero()[0]
        going = (~self._over).nonzero()[0]
        self._frames = before.copy()
        parts = []
        if len(going):
            world = self._world if len(going) == self.num_envs else self._world.of_streams(going.tolist())
            self._frames[going] = world.step(vectors[going])
            parts.append(world)
        if len(anew):
            world, self._frames[anew] = self._rules.begin([self._rngs[i] for i in anew])
            parts.append(world)
        if len(parts) > 1:
            order = np.argsort(np.concatenate([going, anew]))
            self._world = World.side_by_side(parts).of_streams(order.tolist())
        else:
            self._world = parts[0]
        self._steps = np.where(self._over, 0, self._steps + 1)
        return self._judged(before, going)

    def _judged(
        self, before: Frames, going: NDArray[Any]
    ) -> tuple[Frames, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        rewards = np.zeros(self.num_envs)
        ended, late = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        pose = self._world.pose
        for i in going:
            at = None if pose is None else pose[i]
            rewards[i], ended[i], late[i], _ = self._rules.judge(before[i], self._frames[i], at, int(self._steps[i]))
        self._over = ended | late
        return self._frames.copy(), rewards, ended, late, self._infos()

    def _infos(self) -> dict[str, Any]:
        pose = self._world.pose
        return {"step": self._steps.copy()} | ({} if pose is None else {"pose": pose.copy()})

    def render(self) -> tuple[Frames, ...]:
        """The last picture of each."""
        return tuple(self._frames)
