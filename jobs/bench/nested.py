"""Nested state: the scan and the memory of a layer whose state is cut to half, beside the whole, one thread.

The scan of `longtake.models.scan.scan` at the block's real shapes, forward and backward, whole and half in turns;
`time` is the median over rounds of half / whole in CPU seconds, `memory` the bytes a layer carries (states and
convolution inputs), half / whole. Half a minute.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longtake.config import Config
from longtake.jobs.bench.scan import OURS, Shape, prepare
from longtake.jobs.bench.timing import Row, in_turns, one_thread, speedup
from longtake.models.config import LayerConfig, ModelConfig
from longtake.models.world_model import WorldModel

Positive = Annotated[int, Field(ge=1)]


class Settings(Config):
    """Which states are cut."""

    rounds: Positive = Field(9, description="measured calls of each width")
    d_states: list[Positive] = Field([64, 128, 256], description="whole states; each is cut to half")
    batch: Positive = 4
    length: Positive = 1024
    heads: Positive = 8
    headdim: Positive = 64


def run(settings: Settings) -> list[Row]:
    """Measure every width."""
    with one_thread():
        return [row for d_state in settings.d_states for row in _measure(d_state, settings)]


def _measure(d_state: int, settings: Settings) -> list[Row]:
    sizes = settings.model_dump(include={"batch", "length", "heads", "headdim"})
    calls = {str(n): prepare(Shape(**sizes, d_state=n), OURS) for n in (d_state, d_state // 2)}
    seconds = in_turns(calls, settings.rounds)
    time = speedup(seconds[str(d_state)], seconds[str(d_state // 2)])
    case = f"{d_state // 2} of {d_state} dimensions"
    return [
        Row(case, "time", time, "times", settings.rounds),
        Row(
            case, "memory", _carried(d_state, d_state // 2, settings) / _carried(d_state, d_state, settings), "times", 1
        ),
    ]


def _carried(d_state: int, width: int, settings: Settings) -> int:
    """Bytes that one layer of these sizes carries in `width` of its `d_state` dimensions."""
    config = ModelConfig(
        height=8,
        width=8,
        patch=8,
        dim=settings.heads * settings.headdim,
        heads=settings.heads,
        expand=1,
        headdim=settings.headdim,
        d_state=d_state,
        layers=[LayerConfig(local="none")],
    )
    return WorldModel(config).empty_memory(1, width).nbytes["total"]
