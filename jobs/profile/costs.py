"""What a profile finds: costs counted and measured, and what follows from them. It measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from longtake.jobs.profile.meter import Measured
from longtake.models.analysis.cost import Costs, crossing
from longtake.models.analysis.reach import Horizon

if TYPE_CHECKING:
    from longtake.jobs.profile.config import ProfileConfig

What = Literal["train", "frame"]
Key = tuple[str, What, int]
"""A model, what is measured of it, and the frames."""
FULL = "causal_full"
NEAR = (0.9, 1.1)
"""Around the ceiling that was worked out, where `--ceiling` looks."""
BEYOND = 8
"""Times the longest length, up to where counted costs are kept."""


@dataclass
class Findings:
    """All of it, by the name of the model; `own` is the model that was asked for."""

    own: str
    config: ProfileConfig
    costs: dict[str, Costs]
    horizon: Horizon
    left_out: list[str]
    memory: int = 0
    measured: dict[Key, Measured] = field(default_factory=dict)

    def series(self, name: str, what: What) -> dict[int, Measured]:
        """What was measured of a model, by frames, where there are numbers."""
        measurements = {
            f: m for (n, w, f), m in self.measured.items() if (n, w) == (name, what) and m.seconds is not None
        }
        return dict(sorted(measurements.items()))

    def foreseen(self, name: str, what: What, frames: int, *, memory: bool = True) -> Measured | None:
        """Why this length need not be tried: shorter ones tell that it would take too long, or not fit."""
        known = self.series(name, what)
        if not known:
            return None
        last, measured = list(known.items())[-1]
        assert measured.seconds is not None
        seconds = measured.seconds * self._work(name, what, frames) / self._work(name, what, last)
        if 2 * seconds > self.config.limits.seconds:  # the first call is the slowest, and one more is to be timed
            return Measured(reason=f"not tried: about {seconds:.0f} s each")
        need = self.fit(name)
        if memory and what == "train" and need is not None and need[0] + need[1] * frames > self.memory:
            return Measured(reason=f"not tried: about {(need[0] + need[1] * frames) / 2**30:.1f} GiB")
        return None

    def _work(self, name: str, what: What, frames: int) -> float:
        costs = self.costs[name]
        return costs.training_flops(frames) if what == "train" else costs.frame_flops(frames, self.config.sampler)

    def fit(self, name: str) -> tuple[float, float] | None:
        """Peak bytes of a training step as (at no frames, per frame); None from less than two lengths."""
        points = {frames: one.peak_bytes for frames, one in self.series(name, "train").items()}
        if len(points) < 2:
            return None
        import numpy as np

        slope, start = np.polyfit(list(points), [float(peak or 0) for peak in points.values()], 1)
        return float(start), max(float(slope), 1.0)

    def ceiling(self, name: str) -> int | None:
        """Frames of the longest clip whose training step fits into memory, by the fit."""
        need = self.fit(name)
        return None if need is None else max(0, int((self.memory - need[0]) / need[1]))

    def around_ceiling(self, name: str) -> list[int]:
        """Lengths that tell whether the ceiling is where it should be."""
        ceiling = self.ceiling(name)
        return [] if not ceiling else [int(share * ceiling) for share in NEAR]

    def crossings(self, ours: str, theirs: str) -> dict[str, int | None]:
        """The first frame from which on `theirs` costs more than `ours`: in operations and in bytes carried."""
        one, other, sampler = self.costs[ours], self.costs[theirs], self.config.sampler
        return {
            "cost": crossing(lambda n: one.frame_flops(n, sampler), lambda n: other.frame_flops(n, sampler)),
            "bytes": crossing(lambda n: one.carried(n)["total"], lambda n: other.carried(n)["total"]),
        }

    @property
    def counted(self) -> list[int]:
        """The lengths that costs are kept of: those asked for, and doubled ones up to `BEYOND` times the longest."""
        longest = max(self.config.frames)
        doubled = [longest * 2**i for i in range(1, BEYOND.bit_length())]
        return [*self.config.frames, *doubled]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table `bench`: case, metric, value, unit, repetitions."""
        for name, costs in self.costs.items():
            yield _row(f"{name}", "parameters", costs.parameters, "", 1)
            if (ceiling := self.ceiling(name)) is not None:
                yield _row(f"{name}", "ceiling", ceiling, "frames", 1)
            for frames in self.counted:
                case = f"{name}, {frames} frames"
                yield _row(case, "step operations", costs.training_flops(frames) / 1e9, "GFLOP", 1)
                yield _row(case, "frame operations", costs.frame_flops(frames, self.config.sampler) / 1e9, "GFLOP", 1)
                for part, size in costs.carried(frames).items():
                    yield _row(case, f"carried {part}", size / 1e6, "MB", 1)
        for (name, what, frames), measurement in self.measured.items():
            if measurement.seconds is not None and measurement.peak_bytes is not None:
                case, call = f"{name}, {frames} frames", "step" if what == "train" else "frame"
                yield _row(case, f"{call} time", measurement.seconds, "s", measurement.repetitions)
                yield _row(case, f"{call} memory", measurement.peak_bytes / 1e6, "MB", 1)


def _row(case: str, metric: str, value: float, unit: str, repetitions: int) -> dict[str, Any]:
    return {"case": case, "metric": metric, "value": float(value), "unit": unit, "repetitions": repetitions}
