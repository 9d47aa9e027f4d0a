"""Whether what a training keeps all the time fits the memory of its workers: arithmetic, before anything starts.

Parameters, gradients and the optimizer are counted; what clips need besides depends on their length, so a training
that passes may still run out of memory, and one that is refused would have for certain.
"""

from __future__ import annotations

import os

from jobs.initial import blank
from jobs.train_config import TrainConfig
from longtake.engine import EngineConfig
from longtake.errors import UserError

GIB = 2**30


def require_memory(config: TrainConfig) -> None:
    """Refuse a training whose model is too large for this machine; a cluster's nodes are not known here.

    Raises:
        UserError: with the arithmetic.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    parameters = sum(parameter.numel() for parameter in blank(config).parameters())
    workers = max(1, config.workers)
    if config.gpus_per_worker or (config.workers == 0 and _card_bytes()):
        there, sharers, where = _card_bytes(), max(1, round(1 / (config.gpus_per_worker or 1))), "a card"
    else:
        there, sharers, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), workers, "this machine"
    problem = too_large(parameters, config.engine, workers, sharers, there, where)
    if there and problem:  # no card here: `launch` tells
        raise UserError(problem)


def too_large(parameters: int, engine: EngineConfig, workers: int, sharers: int, there: int, where: str) -> str:
    """Why `sharers` of the `workers` do not fit `there` bytes that they share; empty if they may."""
    parts = per_parameter(engine, workers)
    if engine.offload and where == "a card":
        del parts["optimizer"]
    need = sharers * parameters * sum(parts.values())
    if need <= there:
        return ""
    told = " + ".join(f"{size:.3g} {name}" for name, size in parts.items())
    return (
        f"memory: {sharers} of {workers} workers x {parameters / 1e6:.1f} M parameters x ({told}) bytes = "
        f"{need / GIB:.1f} GiB before the first clip, {where} has {there / GIB:.1f} GiB: take a smaller model, a "
        "higher engine.zero with more workers, or fewer workers on one machine"
    )


def per_parameter(engine: EngineConfig, workers: int) -> dict[str, float]:
    """Bytes that one worker keeps per parameter of the model."""
    zero = engine.zero if engine.backend == "deepspeed" else 0
    share = {part: 1 / workers if zero >= stage else 1.0 for part, stage in (("o", 1), ("g", 2), ("p", 3))}
    copy = 4 if zero else 0  # ZeRO moves an fp32 copy of its part
    return {
        "parameters": (2 if engine.precision == "bf16" else 4) * share["p"],
        "gradients": 4 * share["g"],
        "optimizer": (8 + copy) * share["o"],
    }


def _card_bytes() -> int:
    """Memory of a card of this machine; 0 without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0
