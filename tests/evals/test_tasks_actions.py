"""A task's clip: every stride-th frame, and the actions that lead there; none where the path leaves the recording."""

import numpy as np

from longtake.evals.clip import build_clip
from longtake.evals.protocol import Protocol


def test_no_action_leads_back_or_into_the_first_frame() -> None:
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    pose = np.zeros((4, 3), np.float32)
    actions = np.arange(1, 5, dtype=np.float32)[:, None]
    back = build_clip(Protocol(task="retrieval", context=4, horizon=3), 0, frames, pose, actions)
    assert back.actions[:, 0].tolist() == [0, 2, 3, 4, 0, 0, 0]
    on = build_clip(Protocol(task="rollout", context=2, horizon=2), 0, frames, pose, actions)
    assert on.actions[:, 0].tolist() == [0, 2, 3, 4]


def test_with_a_stride_frames_are_left_out_and_their_actions_kept() -> None:
    """As a training with that stride is shown them (longtake/streaming/loader.py)."""
    frames = np.arange(11, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    pose = np.arange(11, dtype=np.float32)[:, None].repeat(3, 1)
    actions = np.arange(1, 12, dtype=np.float32)[:, None] * [1, 10]
    protocol = Protocol(task="rollout", context=2, horizon=2, stride=3)
    on = build_clip(protocol, 0, frames, pose, actions.astype(np.float32))
    assert protocol.frames == 10 and on.frames[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert on.pose is not None and on.pose[:, 0].tolist() == [0, 3, 6, 9]
    assert on.actions.tolist() == [
        [0] * 6, [2, 20, 3, 30, 4, 40], [5, 50, 6, 60, 7, 70], [8, 80, 9, 90, 10, 100],
    ]  # fmt: skip
    back = build_clip(Protocol(task="retrieval", context=3, horizon=2, stride=3), 0, frames, pose, actions)
    assert back.frames[:, 0, 0, 0].tolist() == [0, 3, 6, 6, 3] and not back.actions[3:].any()
    assert back.actions[1].tolist() == [2, 20, 3, 30, 4, 40]


def test_a_stride_makes_another_protocol_and_none_is_left_out_of_it() -> None:
    plain = Protocol(task="rollout")
    assert "stride" not in plain.model_dump() and plain.model_copy(update={"stride": 2}).hash != plain.hash
