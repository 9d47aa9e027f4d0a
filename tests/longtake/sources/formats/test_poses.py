"""Poses of every layout come out as one of three kinds, and what is none is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from longtake.motion import relative_pose
from longtake.sources.formats.base import LAYOUTS, Columns, Refused, as_pose, pose_names
from tests.longtake.sources.formats import foreign_files as files
from tests.longtake.sources.formats.test_formats import episodes, good

T = 6


def flight(seed: int = 0) -> tuple[Any, Rotation, Any]:
    """Places, rotations, and camera-to-world matrices."""
    rng = np.random.default_rng(seed)
    place, turned = rng.normal(size=(T, 3)), Rotation.random(T, rng=rng)
    matrices = np.tile(np.eye(4), (T, 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = turned.as_matrix(), place
    return place, turned, matrices


def test_one_flight_is_the_same_in_every_layout() -> None:
    place, turned, matrices = flight()
    xyzw = turned.as_quat()
    told = {
        "xyz_xyzw": np.concatenate([place, xyzw], 1),
        "xyz_wxyz": np.concatenate([place, xyzw[:, [3, 0, 1, 2]]], 1),
        "matrix": matrices,
        "view_matrix": np.linalg.inv(matrices),
    }
    truth = relative_pose(told["xyz_xyzw"], "se3")
    for layout, array in told.items():
        found = as_pose(array, layout)  # type: ignore[arg-type]
        np.testing.assert_allclose(relative_pose(found, "se3"), truth, atol=2e-6, err_msg=layout)
        assert found.shape == (T, 7) and found.dtype == np.float32
    for flat in (matrices[:, :3], matrices.reshape(T, 16), matrices[:, :3].reshape(T, 12)):
        np.testing.assert_allclose(relative_pose(as_pose(flat, "matrix"), "se3"), truth, atol=2e-6)


@pytest.mark.parametrize(
    ("layout", "spoil", "told"),
    [
        ("xyz_xyzw", lambda pose: pose * 2, "quaternion of frame 0 is of length 2"),
        ("xyz_xyzw", lambda pose: pose[:, :6], r"expected numbers \(T, 7\)"),
        ("xyz", lambda pose: pose, r"expected numbers \(T, 3\): x, y, z"),
        ("xy", lambda pose: pose[:, :3], r"expected numbers \(T, 2\): x, y"),
    ],
)
def test_what_is_no_such_pose_is_refused(layout: Any, spoil: Any, told: str) -> None:
    place, turned, _ = flight()
    with pytest.raises(Refused, match=told):
        as_pose(spoil(np.concatenate([place, turned.as_quat()], 1)), layout)


def test_matrices_that_mirror_scale_or_project_are_refused() -> None:
    _, _, matrices = flight()
    for number, change in enumerate((np.diag([1.0, 1, -1, 1]), np.diag([2.0, 2, 2, 1]))):
        wrong = matrices.copy()
        wrong[number + 1] = wrong[number + 1] @ change
        with pytest.raises(Refused, match=f"matrix of frame {number + 1} is no rotation"):
            as_pose(wrong, "matrix")
    projective = matrices.copy()
    projective[3, 3, 0] = 0.5
    with pytest.raises(Refused, match="matrix of frame 3"):
        as_pose(projective, "matrix")


def test_units_and_kinds_are_told() -> None:
    assert pose_names("xyz_wxyz", "m") == ["x (m)", "y (m)", "z (m)", "qx", "qy", "qz", "qw"]
    assert pose_names("xy", None) == ["x", "y"] and pose_names("xy_yaw", None)[2] == "yaw (radians, anticlockwise)"
    assert Columns(pose="p", pose_layout="xyz").pose_kind == "place"
    assert set(Columns().model_dump()) == {"actions", "pose", "labels"}, "datasets of before keep their recipe"
    assert all(layout.meaning for layout in LAYOUTS.values())


def test_a_folder_with_poses_in_space_and_a_task(tmp_path: Path) -> None:
    place, turned, _ = flight()
    files.mp4(tmp_path / "x.mp4", files.calm(0, T))
    arrays = {
        "actions": np.zeros((T, 2)),
        "cam": np.concatenate([place, turned.as_quat()], 1),
        "text": np.array("lift"),
    }
    files.write(tmp_path / "x.npz", files.npz(**arrays))
    settings: dict[str, Any] = {"lead": "into", "pose": "cam", "pose_layout": "xyz_xyzw", "task": "text"}
    episode = good(episodes("folder", tmp_path, **settings)["x.mp4"])
    assert episode.meta["task"] == "lift" and episode.pose is not None and episode.pose.shape == (T, 7)
    assert "expected one text" in str(episodes("folder", tmp_path, **{**settings, "task": "actions"})["x.mp4"])
