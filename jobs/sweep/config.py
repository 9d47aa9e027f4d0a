"""What a sweep is, as data: what is searched, how, for what, and the training that its trials vary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, model_validator

from longtake.cluster import accelerators
from longtake.config import Config, load, revise
from longtake.errors import Damaged
from longtake.evals.metric import SetMetric
from longtake.evals.protocol import MetricName, Protocol
from longtake.evals.registry import METRICS
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.provenance import new_run_id
from longtake.tuning.search_config import Pruning, Sampling
from longtake.tuning.space import Axis, Label, settings
from longtake.tuning.sweep_demand import SweepDemand

if TYPE_CHECKING:
    from longtake.storage.lease import Token
    from longtake.storage.store import Store

CONFIGS = Path(__file__).parents[1] / "configs" / "sweep"
Positive = Annotated[int, Field(ge=1)]
Cost = Literal["ms_per_frame", "carried_bytes"]
CHEAP_EPISODES = 8
"""Of the objective that is measured where none is given."""


class Objective(Config):
    """What is better, measured at every checkpoint of a trial: a memory score, or a column of `steps`.

    With neither given, a cheap memory score: half the longest clip of the training walked back, on the val split.
    """

    protocol: Protocol | None = Field(None, description="a cheap one, on the val split")
    metric: MetricName = "psnr"
    """What of the protocol is measured."""
    beyond: int | None = Field(
        None,
        ge=0,
        description="only frames at larger distances; what windows of the space reach when not given [frames]",
    )
    column: str | None = Field(None, description="of the table steps, such as val_loss or state_std.layers.0.ssm")
    better: Literal["higher", "lower"] | None = Field(
        None, description="of a column; when not given frames_per_s are better high, all else low"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.protocol is not None and self.column is not None:
            raise ValueError("give either a protocol to score, or a column of the table steps")
        if self.better is not None and self.column is None:
            raise ValueError("better: is of a column; a metric knows which way is good")
        if self.protocol is not None and self.protocol.split != "val":
            raise ValueError("protocol.split: a search may see the val split only: set split: val")
        measured = () if self.protocol is None else self.protocol.metrics
        if sets := [name for name in measured if isinstance(METRICS[name], SetMetric)]:
            why = "needs the clips of a whole evaluation; a trial is scored by frames"
            raise ValueError(f"protocol.metrics: {sets[0]} {why}")
        if self.protocol is not None and METRICS[self.metric].better == "zero":
            raise ValueError(f"metric: {self.metric} is best at 0; a search needs one that is best high or low")
        if self.protocol is not None and self.metric not in self.protocol.metrics:
            raise ValueError(f"metric: {self.metric} is not among protocol.metrics {self.protocol.metrics}")
        return self

    def cheap(self, frames: int, episodes: int) -> Objective:
        """Itself with a protocol, where none was given; `frames` of the longest clip, `episodes` of the val split.

        Raises:
            UserError: the metric is none to search by.
        """
        lengths = {"context": frames // 2, "horizon": frames // 2, "episodes": min(CHEAP_EPISODES, episodes)}
        measured = {"split": "val", "sampler": {"steps": 2}, "metrics": [self.metric]}
        return revise(self, {"protocol": {"task": "retrieval", **lengths, **measured}})

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Speed is to be high, losses low, scores as their metric says."""
        usual = "higher" if self.column == "frames_per_s" else "lower"
        better = METRICS[self.metric].better if self.column is None else self.better or usual
        return "maximize" if better == "higher" else "minimize"

    @property
    def name(self) -> str:
        """In words."""
        if self.protocol is None:
            return str(self.column)
        return f"{self.protocol.task} {self.metric}"


class Winners(Config):
    """The best trials, trained again from other seeds than the search saw, and scored on the test split: once."""

    top: Positive = Field(1, description="how many of the best trials [trials]")
    seeds: Positive = Field(3, description="trainings of each [count]")
    protocol: Protocol | None = Field(None, description="on the test split; the objective's own when not given")

    @model_validator(mode="after")
    def _on_test(self) -> Self:
        if self.protocol is not None and self.protocol.split != "test":
            raise ValueError("protocol.split: the search has seen val; winners are scored on test")
        return self


class SweepConfig(Config):
    """One sweep, whole."""

    name: str = Field("sweep", pattern=r"^[a-zA-Z0-9_.-]+$")
    """How tables call it; trials are NAME-000, NAME-001, ."""
    train: str = Field("tiny", description="the training that the trials vary: a shipped config or a YAML path")
    change: dict[str, Any] = Field({}, description="settings of that training that differ in all trials")
    space: Annotated[dict[str, Axis], Field(min_length=1)] = Field(description="axes by dotted field")
    trials: Positive
    """How many points of the space are tried [count]"""
    at_once: Positive = 1
    """Trials that run side by side [count]"""
    sampling: Sampling = Sampling()
    """What is tried next."""
    pruning: Pruning = Pruning()
    """What is stopped early."""
    objective: Objective = Objective()
    """What is better."""
    against: list[Cost] = Field([], description="costs to weigh the objective against: the search is for a front")
    warm_start: list[str] = Field(
        [], description="earlier sweeps of the same objective to learn from, each as a run is named"
    )
    winners: Winners | None = None
    """The best trials trained again, from other seeds; none: that is left out."""
    database: str | None = Field(
        None,
        description="Optuna's URL of where the study is kept (no password: that belongs in the environment); the "
        "store's own journal when not given",
    )

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        """A config is printed and kept in tables."""
        address = urlsplit(self.database or "")
        if address.password or "password" in parse_qs(address.query):
            raise ValueError(
                "database: without its password, which everybody who reads the store would see: drivers take it from "
                "the environment or a file (PGPASSWORD, ~/.pgpass, ~/.my.cnf)"
            )
        return self

    @property
    def test_protocol(self) -> Protocol | None:
        """What winners are scored by."""
        if self.winners is None or self.winners.protocol is not None:
            return self.winners.protocol if self.winners else None
        own = self.objective.protocol
        return None if own is None else own.model_copy(update={"split": "test"})


@dataclass(frozen=True)
class Sweep:
    """A sweep that may run: its id, what was asked, the training that its trials vary; its lease once it runs."""

    id: str
    config: SweepConfig
    base: WorldModelTraining
    token: Token | None = None

    def trial(self, labels: dict[str, Label], number: int | None = None) -> WorldModelTraining:
        """The training of one point of the space. Raises UserError for one that is not valid."""
        name = self.base.name if number is None else f"{self.config.name}-{number:03d}"
        return revise(self.base, {"name": name, **settings(self.config.space, labels)})

    @property
    def need(self) -> SweepDemand:
        """What it asks of the machine."""
        return SweepDemand(
            max(1, self.base.workers),
            gpus_per_worker=accelerators.least(self.base.gpus_per_worker),
            at_once=self.config.at_once,
        )


def file(store: Store, sweep: str, name: Literal["sweep", "train"]) -> tuple[bytes, str]:
    """A config of a sweep as it lies in the store, and its name there. Raises Damaged where it is gone."""
    rel = f"sweeps/{sweep}/{name}.yaml"
    try:
        return store.read_bytes(rel), rel
    except FileNotFoundError:
        raise Damaged(f"{rel}: is gone: bring it back from a copy, or begin a new sweep") from None


def new(config: SweepConfig) -> Sweep:
    """A sweep that has not begun."""
    base = load(WorldModelTraining, config.train, search=train.CONFIGS)
    return Sweep(new_run_id(), config, revise(base, dict(_leaves(config.change))))


def _leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted field and value of everything in nested sections."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
