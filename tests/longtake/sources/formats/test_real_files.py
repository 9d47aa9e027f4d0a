"""Files written by the packages whose formats they are: frames, actions and states as those packages' own readers give.

`real/make.py` made them, and noted what the readers returned.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.sources.formats import formats
from tests.longtake.sources.formats.real.make import digest
from tests.longtake.sources.formats.test_formats import episodes, good

REAL = Path(__file__).parent / "real"
TRUTH: dict[str, Any] = json.loads((REAL / "truth.json").read_text())


def array(name: str, key: str, rel: str) -> Any:
    with np.load(REAL / rel / key) as file:
        return file[name]


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_lerobot(camera: str) -> None:
    found = episodes("lerobot", REAL / "lerobot", camera=f"observation.images.{camera}")
    assert list(found) == list(TRUTH["lerobot"]) and "lerobot" in formats()
    for key, told in TRUTH["lerobot"].items():
        episode = good(found[key])
        assert digest(episode.frames) == told[camera], key
        assert digest(episode.labels["state"]) == told["state"]
        # Frame t was seen before action t was taken: what led into it is the one before, and the last led out.
        rng = np.random.default_rng(int(key.split()[1]))
        actions = rng.normal(size=(len(episode), 3)).astype(np.float32)
        assert digest(actions) == told["action"]
        np.testing.assert_array_equal(episode.actions, [[0, 0, 0], *actions[:-1]])
        np.testing.assert_array_equal(episode.labels["state"][:, 0], np.arange(len(episode)))


def test_webdataset() -> None:
    found = episodes("webdataset", REAL / "webdataset", lead="into", pose="pose")
    assert list(found) == list(TRUTH["webdataset"])
    for number, (key, told) in enumerate(TRUTH["webdataset"].items()):
        episode = good(found[key])
        assert digest(episode.frames) == told["frames"] and episode.meta["task"] == f"t{number}"
        actions = np.arange(len(episode)) % 4
        pose = np.random.default_rng(number).normal(size=(len(episode), 3))
        assert (digest(actions), digest(pose)) == (told["actions"], told["pose"])
        np.testing.assert_array_equal(episode.actions, [-1, *actions[1:]])
        np.testing.assert_array_equal(episode.pose, pose.astype(np.float32))


def test_memory_maze() -> None:
    found = episodes("memory-maze", REAL / "memory_maze", labels=["reward", "target_pos"])
    assert list(found) == list(TRUTH["memory-maze"])
    for key, told in TRUTH["memory-maze"].items():
        episode = good(found[key])
        assert digest(episode.frames) == told["image"] and digest(episode.actions.astype(bool)) == told["action"]
        assert digest(episode.labels["reward"]) == told["reward"]
        assert digest(episode.labels["target_pos"]) == told["target_pos"]
        assert episode.pose is not None and digest(episode.pose[:, :2]) == told["agent_pos"]
        facing = array("agent_dir", key, "memory_maze")
        assert digest(facing) == told["agent_dir"]
        np.testing.assert_allclose(episode.pose[:, 2], np.arctan2(facing[:, 1], facing[:, 0]), atol=1e-6)
        # Action t led into frame t: where one turned left, the picture and the yaw are others than a frame before.
        turned = np.diff(np.unwrap(episode.pose[:, 2]))
        assert (turned[(episode.actions[1:, 2] + episode.actions[1:, 4]) > 0] > 0.05).all()
