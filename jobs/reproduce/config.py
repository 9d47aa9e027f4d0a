"""What a reproduction is, as data: the rows of a table, their seeds, what is asked of them, and what was published.

`longtake reproduce NAME --scale SCALE` reads configs/reproduce/NAME-SCALE.yaml. A row is a training: the table's own
with the layers of a family and some settings changed. The first row is ours: the others are told against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from longtake.config import Config, load, revise, shipped
from longtake.errors import UserError, unknown
from longtake.evals.protocol import MetricName, TaskName
from longtake.jobs import presets
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.train import command as train
from longtake.jobs.train.config import AutoencoderTraining, WorldModelTraining

CONFIGS = Path(__file__).parents[1] / "configs" / "reproduce"
Scale = Literal["micro", "small", "paper"]


class Row(Config):
    """One model of the table."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]+$", description="how tables call it")
    family: str | None = Field(None, description="of configs/families: whose layers it has; those of `train` if none")
    change: dict[str, Any] = Field({}, description="other settings of its training, by dotted field")
    published: dict[MetricName, float] = Field({}, description="what the paper's table has in this place")


class ReproduceConfig(Config):
    """One table, whole."""

    about: str = Field(description="which table, and at which size")
    collect: Annotated[list[str], Field(min_length=1)] = Field(description="configs of the datasets that it needs")
    tokenizer: str | None = Field(
        None, description="config of an autoencoder, trained first; then it encodes the last dataset, as NAME-latents"
    )
    train: str = Field(description="the training that rows vary: a shipped config or a YAML path")
    rows: Annotated[list[Row], Field(min_length=2)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    evaluate: str = Field(description="what is asked of every row")
    task: TaskName = Field("revisit", description="the task whose differences are told")
    metric: MetricName = "psnr"
    published: str = Field(description="what the published values are of, for the head of their column")
    flops_per_s: float = Field(gt=0, description="operations that the machine does in a second, for the hours told")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rows: {', '.join(twice)} twice; tables tell rows apart by their names")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds}; each counts once")
        return self


@dataclass(frozen=True)
class Table:
    """A reproduction that is read: its name, what one types for it, its config, and every training that it names."""

    name: str
    line: str
    config: ReproduceConfig

    @cached_property
    def trainings(self) -> dict[str, list[WorldModelTraining]]:
        """By row, one training per seed. Raises UserError, a line per wrong setting of any row."""
        base = load(WorldModelTraining, self.config.train, search=train.CONFIGS)
        trainings, problems = {}, []
        for row in self.config.rows:
            try:
                trainings[row.name] = [_training(base, row, seed) for seed in self.config.seeds]
            except UserError as error:
                problems += [f"rows.{row.name}: {line}" for line in error.lines]
        if problems:
            raise UserError(*problems)
        return trainings

    @cached_property
    def tokenizer(self) -> AutoencoderTraining | None:
        """The training of the autoencoder that comes first, where there is one."""
        named = self.config.tokenizer
        return None if named is None else load(AutoencoderTraining, named, search=train.CONFIGS)

    @cached_property
    def evaluation(self) -> EvaluateConfig:
        """What is asked. Raises UserError if the table's own task is not."""
        evaluation = load(EvaluateConfig, self.config.evaluate, search=evaluate_config.CONFIGS)
        tasks = [protocol.task for protocol in evaluation.protocols]
        if self.config.task not in tasks:
            raise UserError(f"evaluate: {unknown(f'task in {self.config.evaluate}', self.config.task, tasks)}")
        return evaluation


def read(name: str, scale: str, overrides: list[str]) -> Table:
    """The shipped table of that name at that scale, or the one at a YAML path.

    Raises:
        UserError: no such table or scale, and every problem of its config, trainings and evaluation.
    """
    line = " ".join(["longtake reproduce", name, *(f"--set {override}" for override in overrides)])
    if not ("/" in name or name.endswith((".yaml", ".yml"))):
        _require(name, scale)
        name, line = f"{name}-{scale}", f"{line} --scale {scale}"
    table = Table(Path(name).stem, line, load(ReproduceConfig, name, overrides, search=CONFIGS))
    _ = table.trainings, table.evaluation, table.tokenizer
    return table


def _require(name: str, scale: str) -> None:
    """Raise UserError unless there is such a table at that scale."""
    files = [file.rpartition("-") for file in shipped(CONFIGS)]
    names = sorted({table for table, _, _ in files})
    if name not in names:
        raise UserError(unknown("table", name, names) + " (or give a path that ends in .yaml)")
    scales = [at for table, _, at in files if table == name]
    if scale not in scales:
        raise UserError(unknown(f"scale of {name}", scale, scales))


def _training(base: WorldModelTraining, row: Row, seed: int) -> WorldModelTraining:
    changes: dict[str, Any] = {"name": row.name, "seed": seed}
    if row.family is not None:
        changes["model.layers"] = [layer.model_dump(mode="json") for layer in presets.layers_of(row.family)]
    return revise(base, changes | row.change)
