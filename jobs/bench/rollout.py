"""One more frame after 100 frames and after 1,000, on a CPU, one thread: constant cost is the point of a state.

block_ssm is shown noise, its memory is saved at both frames and read back, and single frames are generated from the
two in alternation. `ratio` is the median over pairs of later / earlier in CPU seconds, `ratio, upper bound` its
one-sided 95 % bootstrap bound; the bar is 1.05. `memory growth` is in bytes, and must be 0. causal_full, matched in
parameters, is the contrast; its cache repeats a few frames, for only its size matters here. `passes` is the frame from
which on causal_full costs more: in operations and bytes as counted, in time by the line through its two medians.
About four minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from longtake.config import Config
from longtake.jobs.bench.timing import Row, one_thread
from longtake.jobs.presets import in_family, size
from longtake.models.analysis.cost import Costs, conditions_for, crossing, remembered
from longtake.models.analysis.parameter_matching import match_parameters
from longtake.models.config import ModelConfig, SamplerConfig
from longtake.models.memory import Memory
from longtake.models.rollout import prefill, rollout
from longtake.models.world_model import WorldModel

Positive = Annotated[int, Field(ge=1)]
OURS, FULL = "block_ssm", "causal_full"
RESAMPLES = 4000


class Settings(Config):
    """Which model, which frames, how often."""

    size: Literal["tiny", "small", "base"] = Field("small", description="a shipped size")
    early: Positive = Field(100, description="frames remembered")
    late: Positive = Field(1000, description="frames remembered")
    pairs: Positive = Field(200, description="frames generated from each memory")
    contrast_pairs: Positive = Field(10, description="the same for causal_full")
    sampler: SamplerConfig = SamplerConfig()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.early >= self.late:
            raise ValueError(f"early: {self.early} frames are not fewer than late: {self.late}")
        return self


def run(settings: Settings) -> list[Row]:
    """Measure both models."""
    ours = size(settings.size)
    full = match_parameters(in_family(ours, FULL), ours)
    with one_thread():
        return list(_measure(settings, ours, full))


def _measure(settings: Settings, ours: ModelConfig, full: ModelConfig) -> Iterator[Row]:
    frames = (settings.early, settings.late)
    model = _model(ours)
    memories = shown_memories(model, frames)
    times = alternate([_one_frame(model, memory, settings) for memory in memories], settings.pairs)
    yield from _rows(f"{settings.size} {OURS}", frames, memories, times)
    contrast = _model(full)
    grown = tuple(remembered(contrast, count) for count in frames)
    full_times = alternate([_one_frame(contrast, memory, settings) for memory in grown], settings.contrast_pairs)
    yield from _rows(f"{settings.size} {FULL}", frames, grown, full_times)
    yield from _passes(settings, (ours, full), times, full_times)


def _model(config: ModelConfig) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(config).eval()


def shown_memories(model: WorldModel, frames: tuple[int, ...]) -> tuple[Memory, ...]:
    """The memory after each of these numbers of frames of noise, saved and read back."""
    config, memory, saved, before = model.config, None, [], 0
    for count in frames:
        shape = (1, count - before, config.channels, config.height, config.width)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(count))
        memory = prefill(model, noise, conditions_for(config, count - before), memory)
        saved.append({name: tensor.clone() for name, tensor in memory.to_dict().items()})
        before = count
    return tuple(Memory.from_dict(flat) for flat in saved)


def _one_frame(model: WorldModel, memory: Memory, settings: Settings) -> Callable[[], object]:
    conditions = conditions_for(model.config, 1)
    return lambda: rollout(model, conditions, 1, memory, settings.sampler, [torch.Generator().manual_seed(0)])


def alternate(calls: Sequence[Callable[[], object]], pairs: int) -> list[tuple[float, float]]:
    """CPU seconds of two calls, pair by pair, the order swapped each time; a first pair does not count."""
    timings = []
    for number in range(pairs + 1):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            calls[which]()
            seconds[which] = time.process_time() - began
        timings.append((seconds[0], seconds[1]))
    return timings[1:]


def upper_bound(ratios: list[float]) -> float:
    """One-sided 95 % bootstrap bound of the median."""
    draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    return float(np.quantile(np.median(draws, 1), 0.95))


def _rows(
    case: str, frames: tuple[int, int], memories: tuple[Memory, ...], times: list[tuple[float, float]]
) -> Iterator[Row]:
    ratios, count = [late / early for early, late in times], len(times)
    for index, frame in enumerate(frames):
        yield Row(f"{case}, frame {frame}", "time", statistics.median(pair[index] for pair in times), "s", count)
        yield Row(f"{case}, frame {frame}", "memory", memories[index].nbytes["total"] / 1e6, "MB", 1)
    case = f"{case}, frame {frames[1]} over {frames[0]}"
    yield Row(case, "ratio", statistics.median(ratios), "times", count)
    yield Row(case, "ratio, upper bound", upper_bound(ratios), "times", count)
    yield Row(case, "memory growth", memories[1].nbytes["total"] - memories[0].nbytes["total"], "B", 1)


def _passes(
    settings: Settings,
    configs: tuple[ModelConfig, ModelConfig],
    times: list[tuple[float, float]],
    full_times: list[tuple[float, float]],
) -> Iterator[Row]:
    """Where causal_full begins to cost more; no row where it never does."""
    ours, full = (Costs(config) for config in configs)
    sampler, early, late = settings.sampler, settings.early, settings.late
    constant = statistics.median(late for _, late in times)
    start, end = (statistics.median(pair[index] for pair in full_times) for index in (0, 1))
    slope = max(0.0, (end - start) / (late - early))
    passes = {
        "operations": crossing(lambda n: ours.frame_flops(n, sampler), lambda n: full.frame_flops(n, sampler)),
        "bytes": crossing(lambda n: ours.carried(n)["total"], lambda n: full.carried(n)["total"]),
        "time": crossing(lambda n: constant, lambda n: start + slope * (n - early)),
    }
    for what, frame in passes.items():
        if frame is not None:
            yield Row(f"{settings.size} {FULL} passes {OURS}", what, frame, "frames", 1)
