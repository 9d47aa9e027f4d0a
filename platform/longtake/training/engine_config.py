"""How parameters are updated, as data: backend, precision, optimiser, schedule."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from longtake.config import Config


class EngineConfig(Config):
    """How gradients become a step."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    zero: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    offload: bool = False  # the optimizer's moments and the fp32 parameters lie in the CPU's memory
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(50, ge=0)  # steps
    final_lr: float = Field(0.1, ge=0, le=1)  # the cosine ends at this share of lr
    decay: float = Field(1.0, gt=0, le=1)  # share of the steps, the last ones, that the cosine takes; lr before it
    weight_decay: float = Field(0.01, ge=0)  # on matrices only
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)  # largest norm of all gradients together; 0: as they are
    threads: int = Field(1, ge=1)  # of a rank on a CPU; sums are bitwise repeatable for a fixed number

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems, shared = [], self.backend == "deepspeed" and self.zero > 0
        if self.precision == "bf16" and not (shared and self.zero > 1):
            problems.append(
                "precision: bf16 parameters need fp32 ones and fp32 sums of gradients beside them, which ZeRO 2 and 3 "
                "keep: set backend to deepspeed and zero to 2, or precision to autocast"
            )
        if self.offload and not shared:
            problems.append("offload: ZeRO does it: set backend to deepspeed and zero to 1, 2 or 3")
        if problems:
            raise ValueError(*problems)
        return self


def decay_start(config: EngineConfig, steps: int) -> int:
    """The step from which on the learning rate falls."""
    return max(config.warmup, round((1 - config.decay) * steps))


def learning_rate(config: EngineConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up, lr, then a cosine to final_lr * lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    start = decay_start(config, steps)
    done = min(1.0, max(0, step - start) / max(1, steps - start))
    share = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * share
