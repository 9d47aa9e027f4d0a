"""How parameters are updated, as data: backend, precision, optimiser, schedule."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from longtake.config import Config


class EngineConfig(Config):
    """How gradients become a step."""

    synonyms = {
        "backend": {"pytorch": "torch", "ddp": "torch", "plain": "torch", "ds": "deepspeed", "zero": "deepspeed"},
        "precision": {
            **dict.fromkeys(("float32", "32", "full"), "fp32"),
            **dict.fromkeys(("amp", "mixed", "fp16", "float16", "16", "half"), "autocast"),
            "bfloat16": "bf16",
        },
    }

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    """Who updates the parameters: DeepSpeed, or plain PyTorch on one worker or several."""
    zero: Literal[0, 1, 2, 3] = 1
    """Of deepspeed: what is split among the workers: 1 the optimizer's moments, 2 gradients too, 3 parameters too; 0
    nothing."""
    precision: Literal["auto", "fp32", "autocast", "bf16"] = "auto"
    """auto: autocast on a card, fp32 on a CPU. fp32 throughout; autocast: layers in bf16, parameters in fp32; bf16:
    parameters in bf16 too, with fp32 copies in ZeRO 2 or 3."""
    offload: bool = False
    """The optimizer's moments and the fp32 parameters lie in the CPU's memory."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate after the warm-up [per step]"""
    warmup: int = Field(50, ge=0)
    """The learning rate rises from 0 for so long [steps]"""
    final_lr: float = Field(0.1, ge=0, le=1)
    """The cosine ends at this share of lr [share]"""
    decay: float = Field(1.0, gt=0, le=1)
    """Share of the steps, the last ones, that the cosine takes; lr before it [share]"""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW, on matrices only [share of lr]"""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Of AdamW: how long it remembers gradients [share]"""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Of AdamW: how long it remembers their squares [share]"""
    clip: float = Field(1.0, ge=0)
    """Largest norm of all gradients together; 0: as they are [norm]"""
    threads: int = Field(1, ge=1)
    """Of a rank on a CPU; sums are bitwise repeatable for a fixed number [count]"""

    def precision_on(self, device: str) -> Literal["fp32", "autocast", "bf16"]:
        """What `auto` comes to on a device."""
        if self.precision == "auto":
            return "fp32" if device == "cpu" else "autocast"
        return self.precision

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
