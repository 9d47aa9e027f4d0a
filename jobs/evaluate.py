"""`longtake evaluate`: score checkpoints on memory tasks, as a resumable grid of Ray tasks that write rows.

A cell is (system, task, a few episodes). Its rows land in the `scores` table in one part with a deterministic name, so
a killed evaluation goes on with the cells that are missing, and the numbers do not depend on the number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from evals.protocol import Protocol
from jobs import fvd
from jobs.train_config import PIXELS
from longtake import checkpoints
from longtake.config import Config, dump, load
from longtake.errors import UserError, unknown
from longtake.grid import Cell, GridReport, run_grid
from longtake.runs import select
from longtake.schema import NO_RUN
from longtake.store import Store, open_store

if TYPE_CHECKING:
    from longtake.episodes import Dataset

CONFIGS = Path(__file__).parent / "configs" / "evaluate"
Variant = Literal["whole", "wiped", "reconstruction"]
"""What is scored of a checkpoint: the model, the same with its memory wiped, or its tokenizer alone: a ceiling."""
Positive = Annotated[int, Field(ge=1)]


class EvaluateConfig(Config):
    """What to ask of every checkpoint."""

    dataset: str | None = Field(None, description="the dataset that the run was trained on when not given")
    protocols: Annotated[list[Protocol], Field(min_length=1)]
    wiped: bool = Field(True, description="also score each model with its memory wiped before generation")
    clips_per_cell: Positive = Field(8, description="clips that run side by side in one cell")


@dataclass(frozen=True)
class Subject:
    """A checkpoint to score."""

    run: str
    name: str
    step: int
    dataset: str
    latents: bool = False
    """Whether it lives on an autoencoder's latents, whose ceiling is scored too."""


@dataclass(frozen=True)
class ScoreCell:
    """Everything that a worker needs to score one system on a few episodes."""

    store: str
    dataset: str
    protocol: Protocol
    system: str
    run: str
    step: int
    variant: Variant
    episodes: tuple[int, ...]

    @property
    def label(self) -> dict[str, Any]:
        """What all rows of the cell say."""
        return {
            "run": self.run,
            "checkpoint": self.step,
            "task": self.protocol.task,
            "system": self.system,
            "protocol": self.protocol.hash,
            "dataset": self.dataset,
            "split": self.protocol.split,
            "seed": self.protocol.seed,
        }

    @property
    def share(self) -> str:
        """Its episodes, as a word."""
        return f"{self.episodes[0]:06d}x{len(self.episodes)}"

    def name(self, share: str) -> str:
        """The part of the `scores` table that holds a share of the system's rows."""
        system = self.system.replace("/", "-")
        return "-".join((self.run, f"{self.step:06d}", system, self.protocol.task, self.protocol.hash, share))


def main(config: str, overrides: list[str], store: str, dry_run: bool, runs: str, tasks: str | None) -> None:
    """The command: check, print the grid, score what is missing."""
    where = open_store(store)
    settings = _only_tasks(load(EvaluateConfig, config, overrides, search=CONFIGS), tasks)
    subjects = find_subjects(where, runs)
    cells = plan_cells(settings, where, subjects)
    if dry_run:
        print(dump(settings))
        print("\n".join(f"checkpoint  {s.name} {s.run} step {s.step} on {s.dataset}" for s in subjects))
        print(f"cells       {len(cells)}")
        return
    report = evaluate(cells, where)
    print(f"{report.ran} cells scored, {report.reused} were there already: longtake results scores --store {where.uri}")
    if report.failed:
        raise SystemExit(1)


def _only_tasks(config: EvaluateConfig, tasks: str | None) -> EvaluateConfig:
    """The config with the protocols of the named tasks."""
    if tasks is None:
        return config
    there = {protocol.task for protocol in config.protocols}
    asked = [task.strip() for task in tasks.split(",")]
    wrong = [unknown("task", task, there) for task in asked if task not in there]
    if wrong:
        raise UserError(*wrong)
    return config.model_copy(update={"protocols": [p for p in config.protocols if p.task in asked]})


def find_subjects(store: Store, runs: str) -> list[Subject]:
    """The newest checkpoint of each named run: `latest`, or ids separated by commas.

    Raises:
        UserError: no such run, or one without a checkpoint.
    """
    ids = select(store, runs)
    table = store.table("runs").set_index("run")
    steps = {run: checkpoints.newest(store, run) for run in ids}
    problems = [f"run {run}: it has no checkpoint yet" for run, step in steps.items() if step is None]
    if problems:
        raise UserError(*problems)
    return [
        Subject(
            run, str(table.loc[run, "name"]), step, str(table.loc[run, "dataset_name"]), _on_latents(store, run, step)
        )
        for run, step in steps.items()
        if step is not None
    ]


def _on_latents(store: Store, run: str, step: int) -> bool:
    written = json.loads(store.read_bytes(f"{checkpoints.folder(run, step)}/config.json"))
    return bool(written["tokenizer"] != PIXELS)


def plan_cells(config: EvaluateConfig, store: Store, subjects: Sequence[Subject]) -> list[Cell]:
    """The grid: floors and oracle once per dataset and protocol, then every checkpoint: whole, wiped, and its ceiling.

    Raises:
        UserError: a task that the dataset cannot serve, too few or too short episodes.
    """
    from evals.systems import FLOORS

    problems: list[str] = []
    cells: list[Cell] = []
    for name in dict.fromkeys(config.dataset or subject.dataset for subject in subjects):
        dataset = store.dataset(name)
        for short in config.protocols:
            protocol = short.model_copy(update={"dataset": dataset.fingerprint})
            found = protocol_problems(protocol, dataset)
            if found:
                problems += found
                continue
            systems: list[tuple[str, str, int, Variant]] = [(floor, NO_RUN, 0, "whole") for floor in FLOORS]
            for subject in subjects:
                if (config.dataset or subject.dataset) == name:
                    systems += _systems(subject, config.wiped)
            for system, run, step, variant in systems:
                for episodes in _shares(dataset, protocol, config.clips_per_cell):
                    cell = ScoreCell(store.uri, name, protocol, system, run, step, variant, episodes)
                    cells.append(Cell(cell.name(cell.share), cell))
    if problems:
        raise UserError(*problems)
    return cells


def _systems(subject: Subject, wiped: bool) -> Iterator[tuple[str, str, int, Variant]]:
    """What is scored of a checkpoint: name of the system, run, step, variant."""
    yield subject.name, subject.run, subject.step, "whole"
    if wiped:
        yield f"{subject.name}/wiped", subject.run, subject.step, "wiped"
    if subject.latents:
        yield f"{subject.name}/reconstruction", subject.run, subject.step, "reconstruction"


def protocol_problems(protocol: Protocol, dataset: Dataset) -> list[str]:
    """Why a dataset cannot serve a protocol: one line per reason."""
    from evals.tasks import TASKS

    problems = []
    try:
        TASKS[protocol.task].path(protocol, has_pose=dataset.has_pose)
    except ValueError as error:
        problems.append(str(error))
    there = dataset.episodes(protocol.split)
    if len(there) < protocol.episodes:
        problems.append(
            f"{protocol.task}.episodes: {protocol.episodes} asked for, "
            f"but split {protocol.split} of {dataset.name} has {len(there)}"
        )
    need = protocol.start + protocol.frames
    short = there.head(protocol.episodes)
    short = short[short.length < need]
    if len(short):
        problems.append(
            f"{protocol.task}: needs {need} frames of an episode (start {protocol.start}, context {protocol.context}, "
            f"horizon {protocol.horizon}), but {len(short)} of {dataset.name} are shorter, "
            f"the shortest has {short.length.min()}"
        )
    metrics = _metric_problems(protocol, dataset.frame_shape[:2])
    return problems + [f"{protocol.task}.metrics: {problem}" for problem in metrics]


def _metric_problems(protocol: Protocol, size: Sequence[int]) -> Iterator[str]:
    """Why metrics cannot be computed here: weights that are not installed, frames or clips that are too small."""
    from evals.metrics import METRICS

    for name in protocol.metrics:
        weights = METRICS[name].weights
        if weights is None:
            continue
        from models.lpips import SMALLEST
        from models.weights import MissingWeights, locate

        try:
            locate(weights)
        except MissingWeights as error:
            yield f"{name}: {error}"
        if min(size) < SMALLEST.get(name, 0):
            yield f"{name}: frames are {size[0]}x{size[1]}, at least {SMALLEST[name]} pixels a side are needed"
    if fvd.METRIC in protocol.metrics:
        yield from fvd.problems(protocol)


def _shares(dataset: Dataset, protocol: Protocol, size: int) -> Iterator[tuple[int, ...]]:
    """The protocol's episodes in cells of a fixed size, so that the batch shapes never depend on the workers."""
    episodes = [int(e) for e in dataset.episodes(protocol.split).episode.head(protocol.episodes)]
    for first in range(0, len(episodes), size):
        yield tuple(episodes[first : first + size])


def evaluate(cells: Sequence[Cell], store: Store) -> GridReport:
    """Score the cells that are missing, one CPU each, with a progress bar; failed cells are named and the rest goes on.

    Rows hold a protocol's hash; what it stands for is kept beside them, in `protocols/HASH.json`.
    """
    from jobs.progress import grid_bar
    from jobs.score_cell import score_cell
    from longtake.cluster import launch

    for protocol in {cell.payload.protocol.hash: cell.payload.protocol for cell in cells}.values():
        store.write_bytes(f"protocols/{protocol.hash}.json", protocol.model_dump_json(indent=1).encode())
    with launch(), grid_bar("evaluate") as bar:
        report = run_grid(store, "scores", cells, score_cell, on_done=bar)
    for part, reason in report.failed.items():
        print(f"failed: {part}: {reason}")
    for clips in sorted(set(fvd.append_fvd(store, cells))):
        print(f"fvd of {clips} clips: comparable with others of {clips} clips only{fvd.rank_told(clips)}")
    return report
