"""The contract of an environment, for every one that is registered: what `longtake collect` counts on."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from longtake.config import Config
from longtake.datasets.episode import Episode, faults
from longtake.errors import UserError
from longtake.motion import NULL_ACTION
from longtake.sources.environment import Environment
from longtake.sources.environments import environments, modules

SMALL: dict[str, dict[str, Any]] = {
    "camera-room": {"steps": 12, "pixels": 8},
    "doom-maze": {"steps": 12, "resolution": (16, 16)},
    "doom-memory": {"look": 2, "away": 6, "resolution": (16, 16)},
    "gym": {"environment": "CartPole-v1", "steps": 6},
    "memory-maze": {"steps": 6, "pixels": 16},
    "texture-torus": {"steps": 12},
}
"""Settings of an episode that is made in a moment."""


def test_every_environment_has_settings() -> None:
    assert SMALL.keys() == environments().keys()


@pytest.mark.parametrize("name", SMALL)
def test_it_is_an_environment_of_its_own_name_with_a_card(name: str) -> None:
    keeps_its_name(name, SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_is_an_episode(name: str) -> None:
    a_seed_is_an_episode(name, SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_episodes_are_what_is_said_of_them(name: str) -> None:
    episodes_are_what_is_said_of_them(name, SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_walks_of_one_world_differ(name: str) -> None:
    walks_of_one_world_differ(name, SMALL[name])


def playable(name: str, settings: dict[str, Any]) -> tuple[Environment, Config]:
    """The environment and a config, which has gone to a worker; skips where it cannot be played here."""
    environment = environments()[name]
    config = pickle.loads(pickle.dumps(environment.config(**settings)))
    try:
        environment.require(config)
    except UserError as error:
        pytest.skip(str(error))
    return environment, config


def keeps_its_name(name: str, settings: dict[str, Any]) -> None:
    """The config's `source` is the name under which it is found, and its file's docstring is a card."""
    environment = environments()[name]
    config: Any = environment.config(**settings)
    assert isinstance(environment, Environment) and config.source == name
    assert config.steps >= 2 and config.fps > 0 and len(config.resolution) == 2
    assert len((modules()[name].__doc__ or "").strip()) > 20


def a_seed_is_an_episode(name: str, settings: dict[str, Any]) -> None:
    """The same bytes twice; other ones for another seed."""
    environment, config = playable(name, settings)
    one, again, other = (environment.generate(config, seed) for seed in (3, 3, 4))
    assert one.meta == again.meta and same(one, again) and not same(one, other)


def episodes_are_what_is_said_of_them(name: str, settings: dict[str, Any]) -> None:
    """Frames of the config's size, a null action first, as many columns as `about` names."""
    environment, config = playable(name, settings)
    episode, about, told = environment.generate(config, 5), environment.about(config), config.model_dump()
    assert not faults(episode) and 2 <= len(episode) <= config.steps  # type: ignore[attr-defined]
    assert episode.frames.shape[1:3] == tuple(config.resolution), told  # type: ignore[attr-defined]
    assert (episode.actions[0] == (NULL_ACTION if episode.actions.ndim == 1 else 0)).all()
    if episode.actions.ndim == 2:
        assert about.get("action_classes") is None and len(about["action_space"]) == episode.actions.shape[1]
    pose = about["pose"]
    assert (episode.pose is None) == (pose is None)
    assert episode.pose is None or episode.pose.shape[1] == len(pose)


def walks_of_one_world_differ(name: str, settings: dict[str, Any]) -> None:
    """Where there are several: the first is that of the seed alone."""
    environment, config = playable(name, settings)
    if not environment.several_walks:
        pytest.skip("it makes a world per episode")
    first, second = (environment.generate(config, 3, number) for number in (0, 1))
    assert same(first, environment.generate(config, 3)) and not same(first, second)


def same(one: Episode, other: Episode) -> bool:
    return all(
        array.shape == other.arrays()[name].shape and np.array_equal(array, other.arrays()[name])
        for name, array in one.arrays().items()
    )
