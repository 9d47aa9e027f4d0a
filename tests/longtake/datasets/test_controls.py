"""What a manifest says of actions: their names, their keys, and how they move the pose."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from longtake.config import load
from longtake.datasets import controls
from longtake.datasets.controls import Control, Controls, Motion
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs.collect import command as collect
from longtake.sources.environments import environments
from longtake.storage.store import open_store

GAIN = ((0.5, 0.0), (0.0, 0.0), (0.0, -0.25))
MOTION = Motion(gain=GAIN, carry=((0.5, 0), (0, 0.5)), axes="after")
"""Turns first, walks then, and glides on."""
KEYS = Controls(
    controls=(
        Control(name="forward", keys=("ArrowUp", "w"), action=(1, 0)),
        Control(name="left", keys=("ArrowLeft",), action=(0, 1)),
        Control(name="right", keys=("ArrowRight",), action=(0, -1)),
    ),
    bounds=((0, 1), (-1, 1)),
)


def walk(seed: int, frames: int = 60, blocked: float = 0.1) -> Episode:
    """Moves by GAIN; a share of the steps runs into a wall, and one step jumps."""
    rng = np.random.default_rng(seed)
    actions = np.stack([rng.integers(0, 2, frames), rng.uniform(-1, 1, frames)], 1).astype(np.float32)
    actions[0], pose = 0, np.zeros((frames, 3))
    for t in range(1, frames):
        pose[t] = MOTION.moved(pose[None, max(0, t - 2)], pose[None, t - 1], actions[None, t])[0]
        if rng.random() < blocked:
            pose[t, :2] = pose[t - 1, :2]
    pose[frames // 2 :, 0] += 7
    picture = rng.integers(0, 255, (frames, 8, 8, 3), dtype=np.uint8)
    return Episode(picture, actions, pose.astype(np.float32), {"seed": seed})


def written(folder: Path, told: Controls | None, classes: int | None = None) -> Dataset:
    space = {"forward": "0 or 1", "turn": "-1 to 1"}
    writer = DatasetWriter(
        open_store(folder), "walks", recipe={}, fps=5, action_space=space, pose=["x", "y", "yaw"],
        controls=told, action_classes=classes,
    )  # fmt: skip
    writer.claim()
    writer.write_shard(0, [walk(seed) for seed in range(12)])
    return writer.finalize(1)


def test_motion_is_estimated_where_the_source_does_not_say_it(tmp_path: Path) -> None:
    """By what most steps do: walls and jumps are told by the residual, not mixed into the gain."""
    written(tmp_path, KEYS)
    found = open_store(tmp_path).dataset("walks").manifest.controls
    assert found is not None and found.motion is not None
    assert (found.controls, found.bounds) == (KEYS.controls, KEYS.bounds)
    assert np.allclose(found.motion.gain, GAIN, atol=1e-3) and np.allclose(found.motion.drift, 0, atol=1e-3)
    assert np.allclose(found.motion.carry, MOTION.carry, atol=1e-3) and found.motion.axes == "after"
    assert 0.8 < found.motion.kept < 0.99 and found.motion.steps == 58 * 10
    ahead, left, turn = found.motion.residual
    assert ahead > 0.1 and left > 0.05 and turn < 1e-3


def test_motion_of_the_source_is_kept(tmp_path: Path) -> None:
    told = KEYS.model_copy(update={"motion": Motion(gain=((9, 0), (0, 9), (0, 0)))})
    assert written(tmp_path, told).manifest.controls == told


def test_actions_without_names_are_called_by_their_columns(tmp_path: Path) -> None:
    found = written(tmp_path, None).manifest.controls
    assert found is not None
    assert [c.name for c in found.controls] == ["forward+", "forward-", "turn+", "turn-"]
    assert [c.keys for c in found.controls] == [("1",), ("2",), ("3",), ("4",)]
    assert found.bounds[0] == (0, 1) and -1 <= found.bounds[1][0] < -0.9


def test_a_manifest_of_before_is_still_whole(tmp_path: Path) -> None:
    """Its checksum was made without controls; they are then found when they are asked for."""
    dataset = written(tmp_path, KEYS)
    old = dataset.manifest.model_copy(update={"controls": None}).sealed()
    text = old.model_dump_json(indent=1, exclude={"controls"})
    (tmp_path / "datasets/walks/manifest.json").write_text(text)
    again = open_store(tmp_path).dataset("walks")
    assert again.manifest.controls is None
    motion = controls.of_dataset(again).motion
    assert motion is not None and np.allclose(motion.gain, GAIN, atol=1e-3)


def test_keys_that_are_held_are_added() -> None:
    assert KEYS.held({"w", "ArrowUp", "ArrowLeft"}).tolist() == [1, 1]
    assert KEYS.held({"ArrowLeft", "ArrowRight"}).tolist() == [0, 0]
    assert KEYS.held({"x"}).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ([1, 0.5], None),
        ([1, 1.5], "number 1 is 1.5, allowed are -1 to 1"),
        ([1, 0, 0], "3 numbers, but one has 2"),
        ([float("nan"), 0], "not finite (nan or inf)"),
    ],
)
def test_what_is_no_action_is_told(action: list[float], problem: str | None) -> None:
    assert KEYS.problem(np.array(action)) == problem


def test_of_discrete_actions_the_one_with_the_most_keys_is_meant() -> None:
    from longtake.sources.formats.memory_maze import CONTROLS, MOVES

    both = CONTROLS.held({"ArrowUp", "ArrowLeft"})
    assert MOVES[int(both.argmax())] == "forward left" and both.sum() == 1
    assert not CONTROLS.held(set()).any()
    assert CONTROLS.problem(both + both) == "not one-hot: a single one among zeros, or zeros for none"


def test_an_action_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown action 'forwrd' .did you mean forward"):
        KEYS.named("forwrd")


def test_moves_are_in_the_axes_of_the_pose_before() -> None:
    motion = Motion(gain=((1, 0), (0, 0), (0, 1)))
    pose = np.array([[2.0, 3.0, math.pi / 2]])
    after = motion.moved(pose, pose, np.array([[1.0, 0.5]]))
    assert np.allclose(after, [[2, 4, math.pi / 2 + 0.5]])
    assert np.allclose(controls.moves(pose, after), [[1, 0, 0.5]])
    assert np.allclose(controls.moves(np.array([[7.5, 0, 0]]), np.array([[0.5, 0, 0]]), wraps=8.0), [[1, 0, 0]])


@pytest.mark.parametrize("config", ["texture-torus-micro", "texture-torus-movers"])
def test_the_torus_says_how_its_actions_move(config: str) -> None:
    """Exactly: each recorded step is what the motion makes of it."""
    settings = load(collect.CollectConfig, config, search=collect.CONFIGS)
    about = environments()[settings.source.source].about(settings.source)
    episode = collect.record(settings, 0)
    assert episode.pose is not None
    told: Controls = about["controls"]
    assert told.motion is not None
    side = episode.meta["wraps"]
    made = controls.moves(episode.pose[:-1], episode.pose[1:], wraps=side)
    led = episode.actions[1:] @ np.asarray(told.motion.gain).T
    walked = np.abs(led).sum(1) > 0
    assert walked.mean() > 0.9
    turned = (made[walked] - led[walked])[:, 2]
    assert np.allclose(made[walked, :2], led[walked, :2], atol=1e-3)
    assert np.allclose(np.sin(turned / 2), 0, atol=1e-3)


def test_every_source_says_its_keys() -> None:
    for name in ("doom-maze-demo", "texture-torus-micro", "doom-memory", "memory-maze"):
        settings = load(collect.CollectConfig, name, search=collect.CONFIGS)
        told: Controls = environments()[settings.source.source].about(settings.source)["controls"]
        assert all(control.keys for control in told.controls), name
