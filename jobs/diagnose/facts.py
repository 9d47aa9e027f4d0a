"""What the tables know of a run's memory: its horizon, what it costs, how its state fares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.evals.memory_horizon import TASK, Horizon
from longtake.jobs.presets import in_family, in_words
from longtake.jobs.report.gather import Run, find_profiles, find_runs
from longtake.jobs.results import memory_horizons
from longtake.jobs.train.config import WorldModelTraining
from longtake.models.analysis.cost import Costs
from longtake.models.analysis.reach import Horizon as Reach
from longtake.models.analysis.reach import fresh_horizon
from longtake.models.config import ModelConfig
from longtake.tables.schema import NO_RUN

if TYPE_CHECKING:
    import pandas as pd

    from longtake.storage.store import Store

FULL = "causal_full"
STATE = "state_"
"""What columns of `steps` about the carried state begin with: state_std.layers.0.ssm."""
SEAMS = "seams"


@dataclass(frozen=True)
class Facts:
    """A run: its config, and what was measured of it, None where nothing was."""

    run: str
    name: str
    config: WorldModelTraining
    horizon: Horizon | None
    frame_ms: float | None
    """Time per frame made, after the longest context measured."""
    timed_by: str
    """What measured it."""
    steps: pd.DataFrame
    """Its rows of `steps`, in order."""
    seams: float | None
    """dB, of a long generation, across the borders of blocks; 0 is the truth."""

    @property
    def model(self) -> ModelConfig:
        """Its model."""
        return self.config.model

    @cached_property
    def costs(self) -> Costs:
        """Counted costs."""
        return Costs(self.model)

    @cached_property
    def full(self) -> Costs | None:
        """Counted costs of the same layers with attention to every frame; None where it has that itself."""
        has = any(layer.keeps_every_frame for layer in self.model.stack)
        return None if has else Costs(in_family(self.model, FULL))

    @cached_property
    def fresh(self) -> Reach:
        """How far back it could remember when it began."""
        return fresh_horizon(self.model)

    @property
    def asked(self) -> int:
        """Frames of context after which costs are told: as far as its memory was measured, else as it was trained."""
        return self.horizon.reach if self.horizon else self.trained

    @property
    def trained(self) -> int:
        """Frames of the longest clips that it was trained on."""
        return max(stage.frames for stage in self.config.data.curriculum)

    @property
    def farthest(self) -> int:
        """The largest distance at which training asked for a place again: on a walk and its way back, or none known."""
        return self.trained - 1

    def told(self) -> Iterator[str]:
        """What it is, what it remembers, and what that costs, in sentences."""
        yield in_words(self.model)
        if self.horizon:
            yield f"{self.horizon.system} {memory_horizons.sentence(self.horizon)}"
        carried = self.costs.carried(self.asked)
        parts = ", ".join(f"{part} {megabytes(size)}" for part, size in carried.items() if part != "total" and size)
        yield f"after {self.asked} frames it carries {megabytes(carried['total'])} per stream ({parts or 'nothing'})"

    def missing(self, store: str) -> Iterator[str]:
        """What was not measured, and what would."""
        ask = f"longtake evaluate memory --runs {self.run} --store {store} --tasks"
        if self.horizon is None:
            yield f"not known: its memory horizon: {ask} retrieval"
        if self.frame_ms is None:
            yield f"not known: time per frame: {ask} cost"
        if not self.state("std") and any(layer.scan_class for layer in self.model.stack):
            yield "not known: the spread and rank of its state, which a training notes with its validations"

    def state(self, statistic: str) -> dict[str, pd.Series[float]]:
        """Per layer, a statistic of its state at every validation that noted it."""
        start = f"{STATE}{statistic}."
        series = {str(c).removeprefix(start): self.steps[c].dropna() for c in self.steps if str(c).startswith(start)}
        return {layer: values for layer, values in series.items() if len(values)}


def megabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.3g} MB"


def gather(store: Store, wanted: Sequence[str]) -> list[Facts]:
    """Read the tables.

    Raises:
        UserError: an unknown run; one that trained no world model, or one that carries no memory.
    """
    runs = find_runs(store, wanted)
    problems = [
        f"run {run.id}: {reason}; what is diagnosed is a memory carried from frame to frame"
        for run in runs
        if (reason := _unfit(run))
    ]
    if problems:
        raise UserError(*problems)
    ids = [run.id for run in runs]
    scores = store.table("scores", where=f"run in {[*ids, NO_RUN]!r}")
    steps = store.table("steps", where=f"run in {ids!r}")
    profiled = {profile.runs[0]: profile.bench for run in runs for profile in find_profiles(store, [run])}
    return [_facts(run, scores, steps, profiled.get(run.name)) for run in runs]


def _unfit(run: Run) -> str | None:
    if run.row["kind"] != WorldModelTraining.run_kind:
        return f"it is a training of an {run.row['kind']}"
    return None if run.config["model"].get("causal", True) else "its model is not causal"


def _facts(run: Run, scores: pd.DataFrame, steps: pd.DataFrame, bench: pd.DataFrame | None) -> Facts:
    own = scores[scores.run.isin([run.id, NO_RUN])] if len(scores) else scores
    cost, timed_by = _measured_ms(own, bench)
    rows = steps[steps.run == run.id].sort_values("step") if len(steps) else steps
    return Facts(
        run=run.id,
        name=run.name,
        config=WorldModelTraining.model_validate(run.config),
        horizon=_horizon(own),
        frame_ms=cost,
        timed_by=timed_by,
        steps=rows.dropna(axis=1, how="all"),
        seams=_mean(own, "rollout", SEAMS),
    )


def _horizon(own: pd.DataFrame) -> Horizon | None:
    """By the newest protocol of retrieval under which the run and all its rivals were scored."""
    rows = own[own.task == TASK] if len(own) else own
    of_models = rows[rows.run != NO_RUN] if len(rows) else rows
    protocols = list(dict.fromkeys(of_models.sort_values("event_time").protocol)) if len(of_models) else []
    for protocol in reversed(protocols):
        try:
            (horizon,) = memory_horizons.horizons(rows[rows.protocol == protocol])
        except ValueError:
            continue  # a rival was not scored: `missing` tells what to type
        return horizon
    return None


def _measured_ms(own: pd.DataFrame, bench: pd.DataFrame | None) -> tuple[float | None, str]:
    """Time per frame made after the longest context: of the task cost, else of a profile of the same model."""
    rows = own[(own.task == "cost") & (own.metric == "step_ms")] if len(own) else own
    if len(rows):
        newest = rows[rows.checkpoint == rows.checkpoint.max()]
        longest = newest[newest.distance == newest.distance.max()]
        return float(longest.value.median()), f"task cost, {int(longest.distance.max())} frames shown"
    if bench is None:
        return None, ""
    name = str(bench.case[bench.metric == "parameters"].iloc[0])
    rows = bench[(bench.metric == "frame time") & bench.case.str.startswith(f"{name}, ")]
    if not len(rows):
        return None, ""
    frames = rows.case.str.extract(r", (\d+) frames")[0].astype(int)
    longest = rows[frames == frames.max()]
    return float(longest.value.iloc[0]) * 1e3, f"profile, {frames.max()} frames"


def _mean(own: pd.DataFrame, task: str, metric: str) -> float | None:
    rows = own[(own.task == task) & (own.metric == metric) & (own.run != NO_RUN)] if len(own) else own
    rows = rows[~rows.system.str.contains("/")] if len(rows) else rows
    return float(rows.value.mean()) if len(rows) else None


def side_by_side(runs: Sequence[Facts]) -> pd.DataFrame:
    """A line per run: its memory horizon, and beside it what remembering costs."""
    import pandas as pd

    lines = []
    for facts in runs:
        horizon, carried = facts.horizon, facts.costs.carried(facts.asked)
        full = facts.full.carried(facts.asked)["total"] if facts.full else None
        lines.append(
            {
                "model": facts.name,
                "run": facts.run,
                "horizon": None if horizon is None else f"{horizon.frames} [{horizon.low}, {horizon.high}]",
                "of": None if horizon is None else horizon.reach,
                "lost_to": None if horizon is None else horizon.lost_to or "none",
                "trained": facts.trained,
                "carried_mb": round(carried["total"] / 1e6, 3),
                "full_attention_mb": None if full is None else round(full / 1e6, 3),
                "ms_per_frame": None if facts.frame_ms is None else round(facts.frame_ms, 2),
                "timed_by": facts.timed_by,
                "parameters": facts.costs.parameters,
            }
        )
    return pd.DataFrame(lines).dropna(axis=1, how="all")
