"""What a job asks of a cluster, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """What a job asks for: `workers`, each with CPUs for itself and for its data tasks, and GPUs."""

    workers: int
    cpus_per_worker: float = 0.5
    data_cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0.0

    def problems(self, cpus: float, gpus: float, where: str = "this machine") -> list[str]:
        """One line per missing resource, with the arithmetic and the number of workers that would fit."""
        problems = []
        each = self.cpus_per_worker + self.data_cpus_per_worker
        if self.workers * each > cpus:
            parts = _count(self.cpus_per_worker, "CPU")
            if self.data_cpus_per_worker:
                data = _count(self.data_cpus_per_worker, "CPU")
                parts = f"({parts} for the rank + {data} for its data tasks)"
            problems.append(self._too_much(parts, each, "CPU", cpus, where))
        if self.workers * self.gpus_per_worker > gpus:
            parts = _count(self.gpus_per_worker, "GPU")
            problems.append(self._too_much(parts, self.gpus_per_worker, "GPU", gpus, where))
        return problems

    def too_big(self, machines: Sequence[Resources], where: str) -> list[str]:
        """A line if no single node holds one worker, however many nodes there are; its data tasks may be elsewhere."""
        return too_big(self.cpus_per_worker, self.gpus_per_worker, machines, "one worker", where)

    @property
    def least(self) -> Demand:
        """What it cannot go on without, once it runs."""
        return self

    def _too_much(self, parts: str, each: float, unit: str, available: float, where: str) -> str:
        fits = int(available // each)
        advice = f"lower workers to {fits}" if fits else f"one worker needs {_count(each, unit)}"
        total = _count(self.workers * each, unit)
        return f"{_count(self.workers, 'worker')} x {parts} = {total}, {where} has {available:g}: {advice}"


def too_big(cpus: float, gpus: float, machines: Sequence[Resources], what: str, where: str) -> list[str]:
    """A line if no single node has so many CPUs and GPUs; `there` is what each node has, or each kind of node."""
    has = sorted(((node.get("GPU", 0), node.get("CPU", 0)) for node in machines), reverse=True)
    if any(gpus <= its_gpus and cpus <= its_cpus for its_gpus, its_cpus in has):
        return []
    words = "; ".join(in_words(its_cpus, its_gpus) for its_gpus, its_cpus in dict.fromkeys(has))
    wanted = in_words(cpus, gpus)
    return [f"{what} needs {wanted} on a single node, and the nodes of {where} have {words or 'nothing'}"]


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}" if number <= 1 else f"{number:g} {unit}s"


def in_words(cpus: float, gpus: float) -> str:
    """Numbers of CPUs and GPUs; GPUs only where there are some."""
    words = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    return ", ".join(words + ([f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else []))
