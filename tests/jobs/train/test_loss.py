"""A clip's noise follows its slot, whichever rank has it and whatever else that rank has."""

from __future__ import annotations

from dataclasses import replace

import torch

from longtake.jobs.train.loss import TrainingLoss
from longtake.models.conditions import Conditions
from longtake.models.world_model import WorldModel
from tests.jobs.train.rings import config_of, rings


def test_clips_in_any_order_have_the_noise_of_their_slots() -> None:
    config = config_of(diffusion={"null_context": 0.5}, memory={"nested": [4, 8]})
    model, whole = WorldModel(config.model), rings(0)
    objective = TrainingLoss(config, model, model)
    rows = [5, 2, 11, 8]
    some = replace(
        whole,
        frames=whole.frames[rows],
        conditions=Conditions(pose=whole.conditions.pose[rows]),  # type: ignore[index]
        slot=tuple(rows),
        weight=len(rows) / len(whole.frames),
    )
    alone, together = objective.sample_noise(some, 7), objective.sample_noise(whole, 7)
    assert some.size == 16 and len(set(together.level.flatten().tolist())) > 30
    for name in ("noise", "level"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name)[rows], rtol=0, atol=0)
    torch.testing.assert_close(alone.weight / 4, together.weight[rows])
    torch.testing.assert_close(alone.batch.frames, together.batch.frames[rows], rtol=0, atol=0)


def test_a_part_of_a_batch_knows_its_place_in_the_whole() -> None:
    part = rings(0).clips(4, 12).clips(2, 4)
    assert (part.slot, part.weight, part.size) == ((6, 7), 2 / 16, 16)
    torch.testing.assert_close(part.frames, rings(0).frames[6:8], rtol=0, atol=0)
    assert part.between(2, 5).slot == (6, 7)
