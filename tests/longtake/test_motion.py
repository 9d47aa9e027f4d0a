"""Poses relative to a clip's start, and actions that lead into its frames, by hand."""

from __future__ import annotations

import numpy as np

from longtake.motion import action_vectors, leading_actions, relative_pose


def test_relative_pose_is_in_the_first_frame_s_axes() -> None:
    # Looking along +y; then one square ahead; then one to the left, having turned left by 90 degrees.
    pose = np.array([[2, 3, np.pi / 2], [2, 4, np.pi / 2], [1, 3, np.pi]], np.float32)
    expected = [[0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    np.testing.assert_allclose(relative_pose(pose), expected, atol=1e-6)


def test_discrete_actions_are_one_hot_and_the_null_action_is_zeros() -> None:
    np.testing.assert_array_equal(action_vectors(np.array([-1, 2, 0]), 3), [[0, 0, 0], [0, 0, 1], [1, 0, 0]])
    assert action_vectors(np.array([[1.5], [2.0]]), None).dtype == np.float32


def test_what_leads_into_a_frame_is_what_was_done_since_the_one_before() -> None:
    actions = np.arange(12, dtype=np.float32)[:, None]  # action t leads into source frame t
    order = np.array([0, 1, 2, 1, 2, 2, 0])
    np.testing.assert_array_equal(leading_actions(actions, order, 1)[:, 0], [0, 1, 2, 0, 2, 0, 0])
    stacked = leading_actions(actions, order, 3)
    np.testing.assert_array_equal(stacked[[1, 2, 4]], [[1, 2, 3], [4, 5, 6], [4, 5, 6]])
    assert not stacked[[0, 3, 5, 6]].any()


def test_a_path_that_begins_late_has_no_action_at_its_start() -> None:
    actions = np.arange(12, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(leading_actions(actions, np.array([4, 5, 6]), 1)[:, 0], [0, 5, 6])
