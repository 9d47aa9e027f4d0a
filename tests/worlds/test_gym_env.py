"""The learned world as an environment: Gymnasium's own check, and that many in a batch are as many alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.models.config import SamplerConfig
from longtake.storage.store import Store, open_store
from longtake.worlds import gym_env, gym_id, heads
from tests.test_house import ROOT
from tests.worlds.played import planted, walk

RUN = "20261121-041233-k3f9"
OPTIONS: dict[str, Any] = {"run": RUN, "context": 4, "horizon": 5, "sampler": SamplerConfig(steps=1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(tmp_path_factory.mktemp("store"))
    planted(store, RUN)
    return store


def test_gymnasium_finds_nothing_wrong(store: Store) -> None:
    gym_id.register()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        env = gymnasium.make(gym_id.ID, store=store.uri, **OPTIONS, render_mode="rgb_array")
        check_env(env.unwrapped)
    assert env.metadata["render_fps"] == 5
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    assert env.action_space.low.tolist() == [0, -1] and env.observation_space.shape == (16, 16, 3)


def test_the_same_seed_is_the_same_episode(store: Store) -> None:
    env = gym_env.WorldEnv(store=store.uri, **OPTIONS)
    runs = []
    for seed in (7, 7, 8):
        first, told = env.reset(seed=seed)
        runs.append([first, *(env.step([1, 0])[0] for _ in range(3))])
        assert told["pose"].shape == (3,)
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_reward_and_end_are_the_users(store: Store) -> None:
    env = gym_env.WorldEnv(
        store=store.uri,
        reward=lambda frame, told: told["pose"][0],
        ended=lambda frame, told: told["step"] == 3,
        **OPTIONS,
    )
    env.reset(seed=1)
    made = [env.step([1, 0]) for _ in range(3)]
    assert [one[2] for one in made] == [False, False, True] and made[0][1] == made[0][4]["pose"][0]


@pytest.mark.slow
def test_many_in_one_batch_are_as_many_alone(store: Store) -> None:
    """Also when some end earlier than others and begin anew."""
    ended = lambda frame, told: told["step"] == 2 and told["pose"][2] > 0  # noqa: E731
    gym_id.register()
    many = gymnasium.make_vec(
        gym_id.ID, num_envs=4, vectorization_mode="vector_entry_point", store=store.uri, ended=ended, **OPTIONS
    )
    alone = [gym_env.WorldEnv(store=store.uri, ended=ended, **OPTIONS) for _ in range(4)]
    frames, _ = many.reset(seed=3)
    assert many.observation_space.contains(frames)
    for i, env in enumerate(alone):
        assert np.array_equal(env.reset(seed=3 + i)[0], frames[i])
    over = np.zeros(4, bool)
    seen_ends = set()
    for t in range(9):
        actions = np.tile(np.float32([1, (-1) ** t]), (4, 1))
        frames, rewards, terminated, truncated, told = many.step(actions)
        for i, env in enumerate(alone):
            if over[i]:
                expected, late, end = env.reset()[0], False, False
            else:
                expected, _, end, late, _ = env.step(actions[i])
            assert (np.abs(frames[i].astype(int) - expected) <= 1).all()
            assert (terminated[i], truncated[i]) == (end, late)
        over = terminated | truncated
        seen_ends |= {tuple(over.tolist())}
        assert rewards.tolist() == [0.0] * 4
    assert len(seen_ends) > 2, "all of them ended together: the test shows nothing of unlike ages"


def test_heads_are_fitted_to_what_was_recorded(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = DatasetWriter(store, "paid", recipe={}, fps=5, action_space={}, pose=None)
    writer.claim()
    told = []
    for seed in range(20):
        one = walk(seed, 32)
        light = np.random.default_rng(seed).uniform(0, 1, (32, 1, 1, 1))
        frames = (one.frames * light).astype(np.uint8)
        bright = frames.mean((1, 2, 3)) / 255
        told.append(Episode(frames, one.actions, labels={"reward": bright.astype(np.float32), "end": bright > 0.3}))
    writer.write_shard(0, told)
    dataset = writer.finalize(1)
    head = heads.fit(dataset, "reward")
    assert head.r2 > 0.9
    assert abs(head.of(told[0].frames[3], told[0].frames[4]) - told[0].labels["reward"][4]) < 0.05
    with pytest.raises(UserError, match="unknown label of dataset paid 'rewrd' .did you mean reward"):
        heads.fit(dataset, "rewrd")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"context": 99}, "context: 99 frames, but no test episode of mazes has so many"),
        ({"horizon": 0}, "horizon: 0; at least one frame each"),
        ({"reward": "dataset"}, "unknown label of dataset mazes 'reward'"),
        ({"ended": "soon"}, "end: 'soon'; a function of .picture, info., or 'dataset'"),
        ({"run": "nobody"}, "unknown run 'nobody'"),
    ],
)
def test_what_cannot_be_is_told(store: Store, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        gym_env.WorldEnv(store=store.uri, **{**OPTIONS, **options}).reset(seed=0)


def test_gymnasium_finds_the_plugin_by_its_entry_point() -> None:
    """In a process of its own, without torch until a world is made."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["gymnasium.envs"]
    assert scripts == {"__root__": "longtake.worlds.gym_id:register"}
    code = (
        "import sys, gymnasium\nfrom longtake.worlds.gym_id import register\nregister()\nregister()\n"
        "print('longtake/World-v0' in gymnasium.registry, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True False", done.stderr
