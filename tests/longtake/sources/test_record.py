"""`longtake.record`: what was played in an environment of Gymnasium is what the dataset holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longtake
from longtake.errors import UserError

gymnasium = pytest.importorskip("gymnasium")


class Line(gymnasium.Env[Any, Any]):  # type: ignore[misc, name-defined]
    """A dot on a line of eight; the frame is painted by where it is, and the episode ends at either end."""

    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Discrete(8)

    def __init__(self, continuous: bool = False) -> None:
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,)) if continuous else gymnasium.spaces.Discrete(3, start=-1)
        self.at = 4

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.at = 2 + (seed or 0) % 4
        return self.at, {}

    def step(self, action: Any) -> Any:
        self.at += int(np.round(action)) if np.ndim(action) == 0 else int(np.round(action[0]))
        return self.at, float(self.at), self.at in (0, 7), False, {}

    def render(self) -> Any:
        return np.full((4, 4, 3), 10 * self.at, np.uint8)


def test_frames_actions_rewards_and_poses(tmp_path: Path) -> None:
    data = longtake.record(
        Line(),
        lambda at: 1 if at < 6 else -1,
        store=str(tmp_path),
        name="line",
        episodes=6,
        fps=5,
        steps=9,
        pose=lambda env: (env.at, 0),
        pose_kind="place",
        pose_names=("x (cells)", "y (cells)"),
        task="walk",
    )
    episode = data.read(0, labels=True)
    places = [2, 3, 4, 5, 6, 5, 6, 5, 6]
    assert (episode.frames[:, 0, 0, 0] // 10).tolist() == places
    assert episode.actions.tolist() == [-1, 2, 2, 2, 2, 0, 2, 0, 2], "classes count from 0, the first is null"
    assert episode.pose is not None and episode.pose[:, 0].tolist() == places
    assert episode.labels["reward"].tolist() == [0, *places[1:]]
    assert data.manifest.action_classes == 3 and data.tasks == ("walk",) and data.pose_kind == "place"


def test_more_of_it_goes_behind(tmp_path: Path) -> None:
    told: dict[str, Any] = {"store": str(tmp_path), "name": "line", "fps": 5}
    first = longtake.record(Line(True), lambda at: np.array([0.9]), episodes=4, **told)
    assert len(first.read(0)) == 6, "the environment ends it at 7"
    assert first.read(0).actions[:2].tolist() == [[0], [np.float32(0.9)]]
    with pytest.raises(UserError, match="there already.*append=True"):
        longtake.record(Line(True), lambda at: np.array([0.9]), episodes=4, **told)
    more = longtake.record(Line(True), lambda at: np.array([-1]), episodes=2, append=True, **told)
    assert more.manifest.episodes == 6 and more.read(4).actions[1].tolist() == [-1]


def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    told: dict[str, Any] = {"store": str(tmp_path), "name": "line", "fps": 5}
    with pytest.raises(UserError, match="episodes=2 is too few"):
        longtake.record(Line(), lambda at: 1, episodes=2, **told)
    with pytest.raises(UserError, match="frames: .*render_mode='rgb_array'"):
        longtake.record(Line(), lambda at: 1, episodes=3, frame=lambda env, seen: np.zeros((4, 4)), **told)
