"""Actions of a task's clip: those that lead into its frames, and none where the path leaves the recording."""

import numpy as np

from evals.protocol import Protocol
from evals.tasks import build_question


def test_no_action_leads_back_or_into_the_first_frame() -> None:
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    pose = np.zeros((4, 3), np.float32)
    actions = np.arange(1, 5, dtype=np.float32)[:, None]
    back = build_question(Protocol(task="retrieval", context=4, horizon=3), 0, frames, pose, actions)
    assert back.actions[:, 0].tolist() == [0, 2, 3, 4, 0, 0, 0]
    on = build_question(Protocol(task="rollout", context=2, horizon=2), 0, frames, pose, actions)
    assert on.actions[:, 0].tolist() == [0, 2, 3, 4]
