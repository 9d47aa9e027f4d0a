"""How a sweep searches: what it tries next, and what it stops early. Plain data, importable without Optuna."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.config import Config


class Sampling(Config):
    """What to try next."""

    method: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0)
    startup: int = Field(5, ge=1, description="trials drawn at random before the search learns from them")


class Pruning(Config):
    """What to stop early, judged at checkpoints."""

    method: Literal["asha", "median", "none"] = "asha"
    first: int = Field(100, ge=1, description="step of the first rung")
    factor: int = Field(2, ge=2, description="asha: rungs lie at first x factor^n; one in `factor` goes on")
