"""Whether a training fits the memory of its workers: arithmetic, before anything starts.

Parameters, gradients, the optimizer, and what clips keep for the backward pass are counted, the last on the low side
(`SHARE`): a training that passes may still run out of memory, and one that is refused would have.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from longtake.cluster import accelerators
from longtake.cluster.address import given
from longtake.errors import UserError
from longtake.jobs.train.config import TrainConfig, WorldModelTraining
from longtake.jobs.train.init_weights import meta_model
from longtake.training.engine_config import EngineConfig

GIB = 2**30
SHARE = {"fp32": 0.75, "autocast": 0.5, "bf16": 0.4}
"""Of `longtake.models.analysis.cost.footprint` that a device keeps at the least, by precision."""


@dataclass(frozen=True)
class Clips:
    """What the clips of one worker keep at the same time: `frames` are those that gradients flow through."""

    count: int = 0
    frames: int = 0
    each: float = 0.0  # bytes, memory included

    @property
    def bytes(self) -> float:
        """Of all."""
        return self.count * self.each


def require_memory(config: TrainConfig) -> None:
    """Refuse a training whose model is too large for this machine; a cluster's nodes are not known here.

    Raises:
        UserError: with the arithmetic.
    """
    if given() is not None:
        return
    parameters = sum(parameter.numel() for parameter in meta_model(config).parameters())
    workers = max(1, config.workers)
    gpus = accelerators.resolve(config.gpus_per_worker, workers, accelerators.local_count())
    if gpus or (config.workers == 0 and _card_bytes()):
        device, available, sharers, where = "cuda", _card_bytes(), max(1, round(1 / (gpus or 1))), "a card"
    else:
        device, available = "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        sharers, where = workers, "this machine"
    problem = too_large(
        parameters, config.engine, workers, sharers, available, where, heaviest(config, workers, device)
    )
    if available and problem:  # no card here: `launch` tells
        raise UserError(problem)


def heaviest(config: TrainConfig, workers: int, device: str = "cpu") -> Clips:
    """The clips of the stage that asks most of a worker; of an autoencoder's frames nothing is known."""
    if not isinstance(config, WorldModelTraining):
        return Clips()
    from longtake.models.analysis.cost import footprint

    one, share = footprint(config.model, config.recompute), SHARE[config.engine.precision_on(device)]
    stages = []
    for stage in config.data.curriculum:
        stretch = (config.temporal_block or stage.frames) * (config.bptt_blocks or stage.frames)
        frames = min(stage.frames, stretch)
        count = -(-config.data.frames_per_step // (stage.frames * workers))
        stages.append(Clips(count, frames, share * one.kept(frames) + one.carried))
    return max(stages, key=lambda clips: clips.bytes)


def too_large(
    parameters: int, engine: EngineConfig, workers: int, sharers: int, available: int, where: str, clips: Clips
) -> str:
    """Why `sharers` of the `workers` do not fit `available` bytes that they share; empty if they may."""
    parts = per_parameter(engine, workers)
    if engine.offload and where == "a card":
        del parts["optimizer"]
    need = sharers * (parameters * sum(parts.values()) + clips.bytes)
    if need <= available:
        return ""
    bytes_in_words = " + ".join(f"{size:.3g} {name}" for name, size in parts.items())
    return (
        f"memory: {sharers} of {workers} workers x ({parameters / 1e6:.1f} M parameters x ({bytes_in_words}) bytes + "
        f"{clips.count} clips x {clips.each / 1e6:.4g} MB for {clips.frames} frames) = {need / GIB:.1f} GiB at the "
        f"least, {where} has {available / GIB:.1f} GiB: " + _advice(need - sharers * clips.bytes > available)
    )


def _advice(model_alone: bool) -> str:
    if model_alone:
        return "take a smaller model, a higher engine.zero with more workers, or fewer workers on one machine"
    return "set recompute=true, bptt_blocks, or a smaller data.frames_per_step; or take more machines"


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
