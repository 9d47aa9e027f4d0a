"""Gymnasium environments as a source: actions lead into their frames, seeds hold, what cannot be recorded is told."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from longtake.datasets.episode import faults
from longtake.errors import UserError
from longtake.sources.environments.gym import GymConfig, about, generate


class Counter(gymnasium.Env[Any, Any]):
    """A picture whose colour is the sum of the actions so far; ends when it passes `limit`."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str = "rgb_array", limit: int = 100, continuous: bool = False) -> None:
        self.render_mode, self.limit = render_mode, limit
        self.observation_space = gymnasium.spaces.Discrete(2)
        self.action_space = gymnasium.spaces.Box(0, 3, (2,)) if continuous else gymnasium.spaces.Discrete(3, start=1)

    def reset(self, **options: Any) -> Any:
        super().reset(**options)
        self.total = 0.0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.total += float(np.sum(action))
        return 0, float(np.sum(action)), self.total >= self.limit, False, {}

    def render(self) -> Any:
        return np.full((20, 16, 3), int(self.total), np.uint8)


class Corridor(Counter):
    """A picture whose colour is the place on a line; the two actions are a step forth and a step back."""

    def __init__(self, render_mode: str = "rgb_array", continuous: bool = False) -> None:
        super().__init__(render_mode)
        box = gymnasium.spaces.Box(-1, 1, (1,))
        self.action_space = box if continuous else gymnasium.spaces.Discrete(2)
        self.continuous = continuous

    def step(self, action: Any) -> Any:
        self.total += float(action[0]) * 10 if self.continuous else 1 - 2 * int(action)
        return 0, 0.0, False, False, {}

    def render(self) -> Any:
        return np.full((16, 16, 3), int(128 + self.total), np.uint8)


gymnasium.register("Counter-v0", Counter, disable_env_checker=True)
CONFIG = GymConfig(environment="Counter-v0", resolution=(10, 8), steps=30, hold=2)


def test_an_action_leads_into_its_frame() -> None:
    episode = generate(CONFIG, 7)
    assert not faults(episode) and episode.frames.shape == (30, 10, 8, 3) and episode.actions[0] == -1
    steps = np.diff(episode.frames[:, 0, 0, 0].astype(int))
    np.testing.assert_array_equal(steps, episode.actions[1:] + 1)
    np.testing.assert_array_equal(steps, episode.labels["reward"][1:])
    assert set(episode.actions[1:]) == {0, 1, 2} and (np.diff(episode.actions[1:]) == 0).mean() > 0.4
    assert about(CONFIG)["action_classes"] == 3


def test_episodes_end_when_the_environment_ends_them_and_follow_their_seed() -> None:
    short = CONFIG.model_copy(update={"options": {"limit": 6, "continuous": True}})
    one, same, other = generate(short, 3), generate(short, 3), generate(short, 4)
    assert 3 <= len(one) < 30 and one.actions.shape == (len(one), 2) and not one.actions[0].any()
    np.testing.assert_array_equal(one.actions, same.actions)
    assert len(one) != len(other) or (one.actions != other.actions).any()
    assert about(short)["action_classes"] is None


@pytest.mark.parametrize("continuous", [False, True])
def test_the_script_that_returns_sees_its_places_again(continuous: bool) -> None:
    """An entry point that nobody registered."""
    opposites = None if continuous else [1, 0]
    config = GymConfig(
        environment=f"{__name__}:Corridor",
        options={"continuous": continuous},
        resolution=(16, 16),
        steps=101,
        policy="return",
        excursion=25,
        opposites=opposites,
    )
    frames = generate(config, 1).frames[:, 0, 0, 0].astype(int)
    for start in (0, 50):
        there, back = frames[start : start + 26], frames[start + 25 : start + 51]
        np.testing.assert_allclose(back, there[::-1], atol=1)
        assert len(set(there)) > 4
    for wrong in ([0, 0], [0], None):
        if not continuous:
            with pytest.raises(UserError, match=r"source.opposites: .* each of actions 0 to 1, each once"):
                generate(config.model_copy(update={"opposites": wrong}), 0)
    with pytest.raises(UserError, match="by their sign"):
        generate(CONFIG.model_copy(update={"policy": "return", "options": {"continuous": True}}), 0)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ("no_such_module:X-v0", "needs the package no_such_module"),
        ("Nothing-v0", "Nothing"),
        ("CartPole-v9", "source.environment: CartPole-v9"),
    ],
)
def test_what_cannot_be_recorded_is_told(environment: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        generate(GymConfig(environment=environment, steps=4), 0)


def test_atari_by_name() -> None:
    pytest.importorskip("ale_py")
    options: dict[str, Any] = {"frameskip": 4, "repeat_action_probability": 0.0}
    config = GymConfig(environment="ale_py:ALE/Pong-v5", options=options, resolution=(32, 32), steps=40)
    one, same = generate(config, 5), generate(config, 5)
    assert not faults(one) and len(one) == 40 and one.frames.std() > 10
    np.testing.assert_array_equal(one.frames, same.frames)
    assert about(config)["action_classes"] == 6
