"""A protocol: the complete, versioned definition of an eval. Scores of different protocols are never compared."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from evals.metrics import MetricName
from models.config import SamplerConfig

Positive = Annotated[int, Field(ge=1)]
TaskName = Literal["retrieval", "rollout"]


class Protocol(BaseModel):
    """What is shown, what is asked, how it is generated and measured.

    `version` rises whenever code changes what the same fields mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task: TaskName
    version: Literal[1] = 1
    context: Positive = 32
    """Frames given."""
    horizon: Positive = 32
    """Frames generated; at most `context` for retrieval, which walks the context back."""
    episodes: Positive = 48
    """Clips scored, one per episode: the first ones of the split in the order of the dataset's index."""
    start: Annotated[int, Field(ge=0)] = 0
    """First frame of a clip in its episode."""
    split: Literal["val", "test"] = "test"
    dataset: str = ""
    """Fingerprint of the dataset; set by the job."""
    seed: int = 0
    sampler: SamplerConfig = SamplerConfig()
    metrics: Annotated[list[MetricName], Field(min_length=1)] = ["psnr", "ssim"]
    """What is measured (evals/metrics.py); the nets' take longer than the rest."""

    @property
    def frames(self) -> int:
        """Source frames that a clip needs."""
        return self.context if self.task == "retrieval" else self.context + self.horizon

    @property
    def hash(self) -> str:
        """12 hex characters over every field."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
