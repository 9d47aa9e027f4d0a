"""A protocol: the complete, versioned definition of an eval. Scores of different protocols are never compared."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from longtake.evals.registry import ANY_TASK, METRICS, TASKS
from longtake.evals.task import Fields
from longtake.models.config import SamplerConfig
from longtake.registry import known_name

Positive = Annotated[int, Field(ge=1)]


TaskName = Annotated[str, AfterValidator(partial(known_name, names=TASKS))]
"""A task of `evals/tasks/`."""
MetricName = Annotated[str, AfterValidator(partial(known_name, names=METRICS))]
"""A metric of `evals/metrics/`, or of a task."""
if TYPE_CHECKING:
    TaskFields = BaseModel
else:
    _own = {task.fields: None for task in TASKS.values() if task.fields is not Fields}
    TaskFields = create_model("TaskFields", __base__=tuple(sorted(_own, key=lambda own: -len(own.__mro__))) or Fields)
OWN = tuple(TaskFields.model_fields)
"""Fields of single tasks (`Task.fields`); left out of a definition of others, and of its hash."""
WHERE_SAID = ("stride", "limit", "wraps", "precision")
"""Fields that are left out where they are None."""


def _of(name: str) -> str:
    return ", ".join(sorted(task for task in TASKS if name in TASKS[task].fields.model_fields))


class Protocol(TaskFields):
    """What is shown, what is asked, how it is generated and measured; with the fields of every task.

    `version` rises whenever code changes what the same fields mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    task: TaskName
    """What is asked; `longtake tasks` lists them."""
    version: Literal[3] = 3
    """Rises when code changes what the same fields mean."""
    context: Positive = 32
    """Frames given. [frames]"""
    horizon: Positive = 32
    """Frames generated; at most `context` for retrieval, which walks the context back, one less for revisit.
    [frames]"""
    episodes: Positive = 48
    """Clips scored, one per episode: the first ones of the split in the order of the dataset's index. [clips]"""
    start: Annotated[int, Field(ge=0)] = 0
    """First frame of a clip in its episode. [frames]"""
    split: Literal["val", "test"] = "test"
    """Episodes of which part of the dataset; a search may see val alone."""
    dataset: str = ""
    """Fingerprint of the dataset; set by the job."""
    seed: int = 0
    """Of the sampler's noise [number]"""
    sampler: SamplerConfig = SamplerConfig()
    """How frames are generated."""
    metrics: Annotated[list[MetricName], Field(min_length=1)] = ["psnr", "ssim"]
    """What is measured (evals/metrics/); the nets' take longer than the rest."""
    stride: Annotated[int, Field(ge=2)] | None = None
    """Source frames from one frame to the next; None: 1. Where an evaluation does not say, the job takes that of the
    training. [frames]"""
    wraps: Annotated[float, Field(gt=0)] | None = None
    """Cells after which places repeat, both ways, in worlds that go round; set by the job. [cells]"""
    limit: Positive | None = None
    """Only so many of the episodes are scored: a look, not a result, and comparable with none of other limits.
    [clips]"""

    precision: Literal["autocast"] | None = None
    """How models compute: matrix products in bf16, all else in fp32; None: fp32. Set by the job."""

    @property
    def frames(self) -> int:
        """Source frames that a clip needs."""
        return int(TASKS[self.task].frame_order(self)[0].max()) * (self.stride or 1) + 1

    @property
    def spans(self) -> tuple[int, ...]:
        """Source frames of each episode that a clip is made of: of one, or of the walks in a world."""
        walks = TASKS[self.task].walks
        return (self.frames,) if walks is None else tuple(frames * (self.stride or 1) for frames in walks(self))

    @property
    def stream(self) -> int:
        """Frames shown and generated in all."""
        return len(TASKS[self.task].frame_order(self)[0])

    @property
    def scored(self) -> int:
        """Episodes that are scored."""
        return min(self.episodes, self.limit or self.episodes)

    @model_validator(mode="before")
    @classmethod
    def _own_metrics(cls, given: Any) -> Any:
        """A task that measures in its own way does so unless told otherwise."""
        own = TASKS[given["task"]].metrics if isinstance(given, dict) and given.get("task") in TASKS else None
        return {"metrics": list(own), **given} if own else given

    @model_validator(mode="after")
    def _belong(self) -> Self:
        """Raises ValueError for fields and metrics of other tasks."""
        strange = [name for name in sorted(self.model_fields_set) if name in OWN and not self._says(name)]
        problems = [f"{name}: {self.task} has no such field; it is of {_of(name)}" for name in strange]
        own = TASKS[self.task].metrics
        allowed = own or ANY_TASK
        wrong = [name for name in self.metrics if name not in allowed]
        problems += [f"metrics: {self.task} has no {name}; it has {', '.join(allowed)}" for name in wrong]
        if problems:
            raise ValueError(*problems)
        return self

    @model_serializer(mode="wrap")
    def _definition(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields that it says, those of its task after those of all."""
        written: dict[str, Any] = plain(self)
        return {name: written[name] for name in sorted(written, key=OWN.__contains__) if self._says(name)}

    def _says(self, name: str) -> bool:
        if name in OWN:
            return name in TASKS[self.task].fields.model_fields
        return name not in WHERE_SAID or getattr(self, name) is not None

    @property
    def hash(self) -> str:
        """12 hex characters over every field."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
