"""What a sweep asks of a cluster, all its trials together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from longtake.cluster.demand import Demand

if TYPE_CHECKING:
    pass


COORDINATOR_MEMORY = 256 * 2**20  # bytes of a trial's actor that only waits for its workers


@dataclass(frozen=True)
class SweepDemand(Demand):
    """What a sweep asks for: `at_once` trials of `workers` workers each."""

    at_once: int = 1

    def problems(self, cpus: float, gpus: float, where: str = "this machine") -> list[str]:
        """One line per missing resource, with the arithmetic and the number of trials that would fit."""
        parts = f"({self.cpus_per_worker:g} CPU for the rank + {self.data_cpus_per_worker:g} for its data tasks)"
        demands = [
            (self.cpus_per_worker + self.data_cpus_per_worker, parts, "CPUs", cpus),
            (self.gpus_per_worker, f"{self.gpus_per_worker:g} GPU", "GPUs", gpus),
        ]
        lines = []
        for each, words, unit, available in demands:
            if (total := self.at_once * self.workers * each) > available:
                fits = int(available // (self.workers * each))
                advice = f"lower at_once to {fits}" if fits else "lower workers: not even one trial fits"
                lines.append(
                    f"{self.at_once} trials at once x {self.workers} workers x {words} = {total:g} {unit}, "
                    f"{where} has {available:g}: {advice}"
                )
        return lines

    @property
    def least(self) -> Demand:
        """One trial: the others wait."""
        return replace(self, at_once=1)

    @property
    def nested(self) -> bool:
        """Whether a trial starts workers of its own."""
        return self.workers > 1

    def trial_resources(self) -> dict[str, float]:
        """What Tune sets aside for the actor of one trial."""
        if self.nested:
            return {"cpu": 0, "memory": COORDINATOR_MEMORY}
        resources = {"cpu": self.cpus_per_worker + self.data_cpus_per_worker}
        return resources | ({"gpu": self.gpus_per_worker} if self.gpus_per_worker else {})
