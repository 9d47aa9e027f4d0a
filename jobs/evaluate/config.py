"""What an evaluation is, as data: the protocols, the controls and the models that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from longtake.cluster.accelerators import AUTO, Gpus
from longtake.config import Config
from longtake.errors import UserError, unknown
from longtake.evals.protocol import Protocol

if TYPE_CHECKING:
    pass


CONFIGS = Path(__file__).parents[1] / "configs" / "evaluate"


Positive = Annotated[int, Field(ge=1)]


class EvaluateConfig(Config):
    """What to ask of every checkpoint."""

    dataset: str | None = Field(
        None, description="the dataset that the run was trained on when not given; of latents, the one with the pixels"
    )
    protocols: Annotated[list[Protocol], Field(min_length=1)]
    """What is asked, each with its lengths and metrics."""
    wiped: bool = Field(True, description="also score each model with its memory wiped before generation")
    stranger: bool = Field(True, description="also score each model when it is shown another clip's context")
    systems: dict[str, str] = Field({}, description="models that are not ours: name to FILE.py:MAKER")
    clips_per_cell: Positive = Field(8, description="clips that run side by side in one cell [clips]")
    gpus_per_cell: Gpus = Field(
        AUTO,
        description="part of a card that a model's cell takes; auto: a quarter where there is one; 0: a CPU [GPUs]",
    )
    precision: Literal["auto", "fp32", "autocast"] = Field(
        "auto",
        description="auto: autocast (bf16) on cards, fp32 on CPUs; scores of one are not compared with the other's",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="every protocol is scored with each of these seeds, in place of its own [number]"
    )

    def seeded(self) -> list[Protocol]:
        """The protocols, one per seed: what a sampler's noise does to a score is seen in rows that stand apart."""
        if not self.seeds:
            return self.protocols
        return [p.model_copy(update={"seed": seed}) for p in self.protocols for seed in dict.fromkeys(self.seeds)]


def _only_tasks(config: EvaluateConfig, tasks: str | None) -> EvaluateConfig:
    """The config with the protocols of the named tasks."""
    if tasks is None:
        return config
    known = {protocol.task for protocol in config.protocols}
    names = [task.strip() for task in tasks.split(",")]
    wrong = [unknown("task", task, known) for task in names if task not in known]
    if wrong:
        raise UserError(*wrong)
    return config.model_copy(update={"protocols": [p for p in config.protocols if p.task in names]})


def limited(config: EvaluateConfig, limit: int | None) -> EvaluateConfig:
    """The config with protocols of fewer episodes, which are other protocols: their scores stand apart."""
    if limit is None:
        return config
    fewer = [p.model_copy(update={"limit": limit}) if limit < p.episodes else p for p in config.protocols]
    return config.model_copy(update={"protocols": fewer})
