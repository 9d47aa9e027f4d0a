"""Following: a system that obeys scores more the better it does, one that does not listen scores exactly 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from longtake.evals.baselines import CopyLast
from longtake.evals.protocol import Protocol
from longtake.evals.scoring import TASKS
from longtake.evals.task import EvalClip, Rows
from longtake.evals.tasks.following import swapped
from longtake.models.conditions import Conditions

CONTEXT, HORIZON = 4, 3
PROTOCOL = Protocol(task="following", context=CONTEXT, horizon=HORIZON, episodes=10)


class Obedient:
    """Paints every frame in the grey that its action says, off by `error` levels."""

    frames_per_step = 1

    def __init__(self, error: float) -> None:
        self.error = error

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """Nothing to learn from it."""

    def step(self, conditions: Conditions) -> Tensor:
        """A frame per action."""
        assert conditions.actions is not None
        grey = conditions.actions[..., 0] + self.error
        return grey[..., None, None, None].expand(-1, -1, 8, 8, 3).to(torch.uint8)


def clips(count: int = 10) -> tuple[list[EvalClip], Conditions]:
    """Clips whose frames are the grey of their actions."""
    grey = np.random.default_rng(0).integers(20, 200, (count, CONTEXT + HORIZON)).astype(np.float32)
    frames = np.broadcast_to(grey[..., None, None, None], (*grey.shape, 8, 8, 3)).astype(np.uint8)
    distance = np.arange(HORIZON) + 1
    made = [
        EvalClip(f, None, a[:, None], distance, number) for number, (f, a) in enumerate(zip(frames, grey, strict=True))
    ]
    return made, Conditions(actions=torch.from_numpy(grey[..., None]))


def score(system: object) -> Rows:
    questions, conditions = clips()
    measure = TASKS["following"].measure
    assert measure is not None
    return measure(lambda some: system, PROTOCOL, questions, conditions)  # type: ignore[arg-type, return-value]


def test_who_does_not_listen_scores_one() -> None:
    rows = score(CopyLast())
    assert [row["value"] for row in rows] == [1.0] * 10 * HORIZON
    assert {(row["episode"], row["frame"], row["distance"]) for row in rows} == {
        (episode, frame, frame + 1) for episode in range(10) for frame in range(HORIZON)
    }


def test_the_ratio_is_that_of_the_errors() -> None:
    """Off by 2 levels under its own actions: 4 squared levels; under another's, what the greys differ by and 2."""
    questions, _ = clips()
    rows = score(Obedient(2))
    for row in rows:
        own, other = (
            int(questions[n % 10].frames[CONTEXT + row["frame"], 0, 0, 0]) for n in (row["episode"], row["episode"] + 1)
        )
        assert row["value"] == pytest.approx((other + 2 - own) ** 2 / 4)
    assert np.mean([r["value"] for r in score(Obedient(1))]) > np.mean([r["value"] for r in rows]) > 10


def test_the_context_keeps_its_own_conditions_of_every_kind() -> None:
    told = Conditions(
        pose=torch.rand(3, 5, 9),
        actions=torch.rand(3, 5, 2),
        state=torch.rand(3, 5, 4),
        task=torch.arange(3)[:, None].expand(3, 5),
    )
    found = swapped(told, 2)
    for name in ("pose", "actions", "state", "task"):
        before, after = getattr(told, name), getattr(found, name)
        torch.testing.assert_close(after[:, :2], before[:, :2])
        torch.testing.assert_close(after[:, 2:], before.roll(-1, 0)[:, 2:])
    assert found.time is None


def test_a_single_clip_has_no_other() -> None:
    with pytest.raises(ValueError, match="need 2 at least"):
        TASKS["following"].frame_order(PROTOCOL.model_copy(update={"episodes": 1}))
