"""Memory Maze as a source: seeds hold, the quick look at contacts changes nothing, and what is missing is told.

It is recorded where `pip install 'longtake[maze]'` and an OpenGL of the system are there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import numpy as np
import pytest

from longtake.config import build
from longtake.datasets.episode import Episode, faults
from longtake.errors import UserError
from longtake.sources.environments import memory_maze
from longtake.sources.environments.memory_maze import FORWARD, LEFT, MemoryMazeEnvConfig, about, generate, require

SHORT = MemoryMazeEnvConfig(steps=40)


def missing() -> str:
    """Why it cannot be recorded here."""
    try:
        require(SHORT)
    except UserError as error:
        return str(error)
    return ""


recorded = pytest.mark.skipif(bool(missing()), reason=missing())


def test_what_is_missing_is_told_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"mujoco": True}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there.get(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.1.0")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(UserError) as caught:
        require(SHORT)
    one, two, three, four = caught.value.lines
    assert "needs the package memory-maze: pip install 'longtake[maze]'" in one and "dm-control" in two
    assert "needs mujoco 3, not 4.1.0" in three and "MUJOCO_GL=glfw: allowed are egl, osmesa" in four
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(memory_maze.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(UserError, match="apt-get install libosmesa6"):
        require(SHORT)


def test_an_episode_is_no_longer_than_the_environment_lets_it_be() -> None:
    with pytest.raises(UserError, match="steps: 1001, but an episode of 9x9 has at most 1000 frames"):
        build(MemoryMazeEnvConfig, {"steps": 1001})
    assert build(MemoryMazeEnvConfig, {"steps": 4000, "size": "15x15"}).resolution == (64, 64)


class Plane:
    """A stand-in for the environment: an open floor on which the actions do what they do in the maze."""

    def __init__(self) -> None:
        self.at, self.yaw, self.steps = np.array([1.5, 1.5]), 0.0, 0

    def reset(self) -> Any:
        return self

    def step(self, action: int) -> Any:
        self.steps += 1
        self.yaw += {2: 0.5, 4: 0.5, 3: -0.5, 5: -0.5}.get(action, 0.0)
        if action in (1, 4, 5):
            self.at = np.clip(self.at + 0.4 * np.array([np.cos(self.yaw), np.sin(self.yaw)]), 0.1, 8.9)
        return self

    reward = 1.0

    def last(self) -> bool:
        return False

    @property
    def observation(self) -> dict[str, Any]:
        return {
            "image": np.full((8, 8, 3), self.steps % 256, np.uint8),
            "agent_pos": self.at,
            "agent_dir": np.array([np.cos(self.yaw), np.sin(self.yaw)]),
            "maze_layout": np.ones((9, 9), np.uint8),
            "target_pos": self.at,
            "targets_pos": np.stack([self.at] * 3),
        }

    def close(self) -> None:
        pass


def test_the_walker_comes_back_and_an_action_leads_into_its_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_maze, "make", lambda config, seed: Plane())
    episode = generate(MemoryMazeEnvConfig(steps=400), 5)
    assert not faults(episode) and len(episode) == 400 and not episode.actions[0].any()
    assert (episode.actions[1:].sum(1) == 1).all() and episode.pose is not None
    np.testing.assert_array_equal(episode.frames[:, 0, 0, 0], np.arange(400) % 256)
    turned = np.diff(np.unwrap(episode.pose[:, 2]))
    np.testing.assert_allclose(turned[episode.actions[1:, LEFT] == 1], 0.5, atol=1e-5)
    np.testing.assert_allclose(turned[episode.actions[1:, FORWARD] == 1], 0, atol=1e-5)
    squares = list(map(tuple, np.floor(episode.pose[:, :2]).astype(int).tolist()))
    assert len(set(squares)) > 20
    last, gaps = dict[Any, int](), []
    for t, square in enumerate(squares):
        gaps += [t - last[square]] if square in last and t - last[square] > 30 else []
        last[square] = t
    assert len(gaps) > 20


@recorded
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_seeds_hold_and_the_quick_way_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_maze._tasks()
    from dm_control.locomotion.props.target_sphere import TargetSphere

    its_own = TargetSphere._update_activation
    quick, other = generate(SHORT, 7), generate(SHORT, 8)
    monkeypatch.setattr(memory_maze, "_touched", its_own)
    slow = generate(SHORT, 7)
    assert not faults(quick) and quick.frames.shape == (40, 64, 64, 3) and quick.frames.std() > 10
    for name, array in slow.arrays().items():
        np.testing.assert_array_equal(quick.arrays()[name], array, err_msg=name)
    assert (np.diff(quick.frames.astype(int), axis=0) != 0).any((1, 2, 3)).mean() > 0.8
    assert (other.labels["maze_layout"][0] != quick.labels["maze_layout"][0]).any()
    assert_walked(quick)


def assert_walked(episode: Episode) -> None:
    """Forward moves along the yaw, left turns anticlockwise, and the walker stands where the layout is open."""
    assert episode.pose is not None
    x, y, yaw = episode.pose.T
    moved = np.column_stack([np.diff(x), np.diff(y)])
    ahead = (moved * np.column_stack([np.cos(yaw), np.sin(yaw)])[:-1]).sum(1)
    assert ahead[episode.actions[1:, FORWARD] == 1].mean() > 0.1
    turned = np.diff(np.unwrap(yaw))[episode.actions[1:, LEFT] == 1]
    assert not len(turned) or turned.mean() > 0.1
    assert episode.labels["maze_layout"][0][np.floor(y).astype(int), np.floor(x).astype(int)].all()
    assert about(SHORT)["pose"][2].startswith("yaw")
