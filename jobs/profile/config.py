"""What a profile measures, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from longtake.config import Config
from longtake.models.config import ModelConfig, SamplerConfig

if TYPE_CHECKING:
    pass


Positive = Annotated[int, Field(ge=1)]


class Limits(Config):
    """What a measurement may take."""

    seconds: float = Field(10.0, gt=0, description="it is ended after so long")
    memory_gib: float | None = Field(None, gt=0, description="what is free, when not given")
    ceiling: bool = Field(False, description="also try clips just below and above the longest that should fit")


class ProfileConfig(Config):
    """One profile, whole."""

    name: str
    model: ModelConfig
    families: list[str]
    frames: Annotated[list[Positive], Field(min_length=1)]
    limits: Limits
    sampler: SamplerConfig = SamplerConfig()
