"""Which clips a training sees, by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.jobs.train.config import TrainConfig

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.streaming.plan import Plan


def build_plan(config: TrainConfig, dataset: Data, split: str, stage: int = -1) -> Plan:
    """The run's clips; of the validation split, one batch of `validation.clips` clips as long as a stage's."""
    from longtake.streaming.plan import Plan
    from longtake.streaming.shuffles import Locality

    data = config.data
    stages = [(stage.until, stage.frames) for stage in data.curriculum]
    frames_per_step = data.frames_per_step
    if split != "train":
        stages = [(None, stages[stage][1])]
        frames_per_step = config.validation.clips * stages[0][1]
    return Plan.of(
        dataset,
        split,
        stages=stages,
        frames_per_step=frames_per_step,
        base_segment=data.base_segment,
        seed=config.seed if split == "train" else 0,
        clip=data.clip,
        stride=data.stride,
        random_start=data.random_start,
        locality=None if data.locality is None else Locality(**data.locality.model_dump()),
    )
