"""A training step and a generated frame of one model on the accelerator at hand, or on the CPU without one.

Forward, backward and a step of the engine on one batch of noise, without Ray: `seconds` is the median step,
`frames` the frames a second, `memory` the most the device held, `MFU` the share of `peak_flops` that the model's own
operations make up (recomputed ones not counted). `generated` is the milliseconds of a frame after `context` frames of
context. On an H200 the paper's model takes minutes; `--set step.size=tiny --set step.frames=16` runs anywhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from longtake.config import Config
from longtake.jobs.bench.timing import Row
from longtake.jobs.presets import size
from longtake.models.analysis.cost import Costs, conditions_for
from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.rollout import prefill, rollout
from longtake.models.world_model import WorldModel
from longtake.training.engine import Engine
from longtake.training.engine_config import EngineConfig

Positive = Annotated[int, Field(ge=1)]


class Settings(Config):
    """Which model, how long, in what precision."""

    size: Literal["tiny", "small", "base", "lm130", "paper"] | None = Field(
        None, description="a shipped size; none: paper with CUDA, tiny without"
    )
    frames: Positive | None = Field(None, description="of a clip; none: 400 with CUDA, 32 without")
    clips: Positive = 1
    context: Positive = 100
    steps: Positive = Field(5, description="measured steps, after two that are not")
    precision: Literal["fp32", "bf16"] = "bf16"
    recompute: bool = True
    backend: Literal["torch", "deepspeed"] = Field("torch", description="of the engine, as in training")
    zero: Literal[0, 1, 2, 3] = Field(1, description="of deepspeed")
    peak_flops: float = Field(989e12, gt=0, description="of the device, dense, in this precision; for MFU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sampler: SamplerConfig = SamplerConfig()


def run(settings: Settings) -> list[Row]:
    """Measure the step, then the frame."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    name, frames = ("paper", 400) if device == "cuda" else ("tiny", 32)
    name, frames = settings.size or name, settings.frames or frames
    torch.manual_seed(0)
    with torch.device(device):
        model = WorldModel(size(name))
    model.recompute = settings.recompute
    case = f"{name} {settings.precision} {device}"
    return [*_training(model, settings, case, frames), *_generating(model.eval(), settings, case)]


def _training(model: WorldModel, settings: Settings, case: str, frames: int) -> Iterator[Row]:
    """As a training computes: autocast is around the forward pass alone, and stays around the model's."""
    device = model.place.device.type
    precision: Literal["fp32", "autocast"] = "autocast" if settings.precision == "bf16" else "fp32"
    config = EngineConfig(backend=settings.backend, zero=settings.zero, precision=precision)
    engine = Engine(model, config, steps=settings.steps + 2, device=device)

    def step() -> None:
        prediction, _ = engine(*_noise(model, settings.clips, frames))
        engine.backward(prediction.float().square().mean())
        engine.step()

    seconds = _timed(step, settings.steps + 2, device)[2:]
    case, each = f"{case} {frames} frames", statistics.median(seconds)
    yield Row(case, "seconds", each, "s", len(seconds))
    yield Row(case, "frames", settings.clips * frames / each, "1/s", len(seconds))
    if device == "cuda":
        yield Row(case, "memory", torch.cuda.max_memory_allocated() / 1e9, "GB", 1)
        work = settings.clips * Costs(model.config).training_flops(frames)
        yield Row(case, "MFU", work / each / settings.peak_flops, "share", len(seconds))


def _generating(model: WorldModel, settings: Settings, case: str) -> Iterator[Row]:
    device = model.place.device.type
    together = model.config.chunk or 1
    context = settings.context // together * together
    config = model.config
    shown = torch.zeros(1, context, config.channels, config.height, config.width, device=device)
    memory = prefill(model, shown, _told(model, 1, context))
    generators, conditions = [torch.Generator()], _told(model, 1, together)
    seconds = _timed(
        lambda: rollout(model, conditions, together, memory, settings.sampler, generators), settings.steps + 2, device
    )[2:]
    yield Row(f"{case} frame {context}", "generated", 1e3 * statistics.median(seconds) / together, "ms", len(seconds))


def _timed(call: Callable[[], object], rounds: int, device: str) -> list[float]:
    """Wall-clock seconds of each call; on CUDA until the device is done."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def _noise(model: WorldModel, clips: int, frames: int) -> tuple[Tensor, Tensor, Conditions]:
    config = model.config
    device = model.place.device
    x = torch.randn(clips, frames, config.channels, config.height, config.width, device=device)
    return x, torch.rand(clips, frames, device=device), _told(model, clips, frames)


def _told(model: WorldModel, clips: int, frames: int) -> Conditions:
    return conditions_for(model.config, frames, clips).to(model.place.device)
