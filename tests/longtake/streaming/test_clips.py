"""A clip as it is read: its frames, the poses seen from its first one, the actions that led to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.storage.store import open_store
from longtake.streaming.clips import load_clips
from longtake.streaming.plan import Plan
from tests.longtake.streaming.numbered import numbered, train_plan


def test_clips_hold_the_planned_frames_of_the_split(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan, train = train_plan(data), set(data.episodes("train")["episode"])
    for step in (0, 7):
        batch = plan.batch(step)
        clips = load_clips(data, batch)
        assert set(batch.episode.tolist()) <= train
        np.testing.assert_array_equal(clips.frames[:, :, 0, 0, 0], batch.episode[:, None].repeat(batch.frames, 1))
        np.testing.assert_array_equal(clips.frames[:, :, 0, 0, 1], batch.start[:, None] + np.arange(batch.frames))
        assert (clips.actions[:, 0] == 0).all()
        np.testing.assert_array_equal(clips.actions[:, 1, 0], batch.start + 2)
        assert clips.weight == 1.0 and clips.slot.tolist() == batch.slot.tolist()


def test_discrete_actions_reach_the_model_as_one_hot(tmp_path: Path) -> None:
    making = DatasetWriter(open_store(tmp_path), "d", recipe={}, fps=1.0, action_space={"a": "any"}, pose=None)
    actions = np.arange(64, dtype=np.int64) % 4 - 1
    making.write_shard(0, [Episode(np.full((64, 2, 2, 3), n, np.uint8), actions, meta={"n": n}) for n in range(4)])
    data = making.finalize(1)
    batch = load_clips(data, train_plan(data).batch(0))
    assert batch.actions.dtype == np.float32 and batch.actions.shape[2] == data.action_dim == 3
    for clip, start in zip(batch.actions, batch.start, strict=True):
        assert not clip[0].any()
        there = actions[start : start + len(clip)]
        np.testing.assert_array_equal(clip[1:].argmax(1)[there[1:] >= 0], there[1:][there[1:] >= 0])
        np.testing.assert_array_equal(clip[1:].sum(1), there[1:] >= 0)


def test_a_palindrome_walks_back_the_way_it_came(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    clips = load_clips(data, train_plan(data, "palindrome").batch(7))
    frames, pose = clips.frames, clips.pose
    assert frames.shape[:2] == (3, 32) and pose.shape == (3, 32, 4)
    np.testing.assert_array_equal(frames, frames[:, ::-1])
    assert (clips.actions[:, 16:] == 0).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_revisit_shows_frames_of_its_first_half_with_their_pose_and_what_led_there(
    tmp_path: Path, stride: int
) -> None:
    data = numbered(tmp_path, length=128)
    plan = Plan.of(data, "train", stages=[(None, 32)], frames_per_step=256, base_segment=8, seed=0,
                   clip="revisit", stride=stride)  # fmt: skip
    orders = set()
    for step in range(4):
        batch = plan.batch(step)
        clips = load_clips(data, batch)
        shown = clips.frames[..., 0, 0, 1].astype(int) - batch.start[:, None]
        np.testing.assert_array_equal(shown, batch.order * stride)
        np.testing.assert_array_equal(batch.order[:, :16], np.arange(16)[None].repeat(8, 0))
        assert batch.order.max() == 15 and batch.order.min() == 0
        np.testing.assert_array_equal(clips.pose[:, 16:], clips.pose[np.arange(8)[:, None], batch.order[:, 16:]])
        follows = np.diff(batch.order) == 1
        led = clips.actions[:, 1:]
        assert (led[~follows] == 0).all() and (led[follows] > 0).all()
        newest = led[..., -1][follows]  # the action of a frame led to it; frame t of an episode has action t + 1
        np.testing.assert_array_equal(newest, (clips.frames[:, 1:, 0, 0, 1][follows]) + 1)
        orders |= {tuple(order) for order in batch.order.tolist()}
    assert len(orders) == 32, "each clip has an order of its own"


def test_a_stride_stacks_the_actions_between_its_frames(tmp_path: Path) -> None:
    data = numbered(tmp_path)
    plan = Plan.of(data, "train", stages=[(None, 8)], frames_per_step=24, base_segment=8, seed=0, stride=3)
    batch = plan.batch(1)
    clips = load_clips(data, batch)
    assert clips.frames.shape[:2] == (3, 8) and clips.actions.shape == (3, 8, 3)
    np.testing.assert_array_equal(clips.frames[:, :, 0, 0, 1], batch.start[:, None] + 3 * np.arange(8))
    for actions, start in zip(clips.actions, batch.start, strict=True):
        assert not actions[0].any()
        # Action t of `numbered` is t + 1, and leads into frame t.
        np.testing.assert_array_equal(actions[1], [start + 2, start + 3, start + 4])
        np.testing.assert_array_equal(actions[7], start + 2 + 18 + np.arange(3))
