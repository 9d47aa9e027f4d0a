"""Relative poses of every kind, against scipy's Rotation, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from longtake.datasets.episode import pose_faults
from longtake.motion import in_space, relative_pose


def flight(seed: int, frames: int = 9) -> tuple[np.ndarray, Rotation]:
    """Places up to a few units away, and any rotations, as float32 poses hold them."""
    rng = np.random.default_rng(seed)
    place = rng.normal(0, 2, (frames, 3)).astype(np.float32)
    pose = np.concatenate([place, Rotation.random(frames, rng=rng).as_quat()], 1).astype(np.float32)
    return pose, Rotation.from_quat(pose[:, 3:].astype(np.float64))


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_poses_in_space_are_those_of_scipy(seed: int) -> None:
    pose, turned = flight(seed)
    back = turned[0].inv()
    gone = back.apply(pose[:, :3].astype(np.float64) - pose[0, :3])
    matrices = (back * turned).as_matrix()
    truth = np.concatenate([gone, matrices[:, :, 0], matrices[:, :, 1]], 1)
    assert np.abs(relative_pose(pose, "se3") - truth).max() <= 1e-6


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_where_the_world_begins_and_how_it_lies_changes_nothing(seed: int) -> None:
    """A rigid motion of the whole world, and the other sign of a quaternion, leave relative poses alone."""
    pose, turned = flight(seed)
    rng = np.random.default_rng(seed + 1)
    world, shift = Rotation.random(rng=rng), rng.normal(size=3)
    moved = np.concatenate([world.apply(pose[:, :3]) + shift, (world * turned).as_quat()], 1)
    moved[::2, 3:] *= -1
    np.testing.assert_allclose(relative_pose(moved, "se3"), relative_pose(pose, "se3"), atol=2e-6)


def test_a_turn_in_the_plane_is_the_same_in_space() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(8, 3))
    quaternion = Rotation.from_euler("z", plane[:, 2:]).as_quat()
    space = np.concatenate([plane[:, :2], np.zeros((8, 1)), quaternion], 1)
    flat, full = relative_pose(plane), relative_pose(space, "se3")
    np.testing.assert_allclose(full[:, :2], flat[:, :2], atol=1e-6)
    np.testing.assert_allclose(full[:, 3:5], flat[:, 2:], atol=1e-6)


@pytest.mark.parametrize("width", [2, 3])
def test_places_without_a_direction_keep_the_axes_of_the_recording(width: int) -> None:
    place = np.random.default_rng(0).normal(size=(6, width)).astype(np.float32)
    found = relative_pose(place, "place")
    np.testing.assert_allclose(found[:, :width], place - place[0], atol=1e-6)
    assert found.shape == (6, 3) and not found[:, width:].any()
    np.testing.assert_array_equal(relative_pose(in_space(place, "place"), "place"), found)


def test_poses_tell_their_kind_by_their_width_to_tasks() -> None:
    assert in_space(np.zeros((4, 3), np.float32), "planar").shape == (4, 3)
    assert in_space(np.zeros((4, 3), np.float32), "place").shape == (4, 7), "x, y, z must not read as x, y, yaw"


@pytest.mark.parametrize(
    ("pose", "kind", "told"),
    [
        (np.zeros((4, 7)), "se3", "the quaternion of frame 0 is of length 0, expected 1"),
        (np.full((4, 7), np.nan), "se3", "length nan"),
        (np.tile([0, 0, 0, 2, 0, 0, 0], (4, 1)), "se3", "length 2, expected 1"),
        (np.zeros((4, 3)), "se3", r"a se3 pose is \(T, 7\)"),
        (np.zeros((4, 4)), "place", r"a place pose is \(T, 2 or 3\)"),
        (np.zeros((4, 7)), "planar", r"a planar pose is \(T, 3\)"),
    ],
)
def test_what_is_no_pose_of_its_kind_is_told(pose: np.ndarray, kind: str, told: str) -> None:
    import re

    (line,) = pose_faults(pose.astype(np.float32), kind)  # type: ignore[arg-type]
    assert re.search(told, line), line
