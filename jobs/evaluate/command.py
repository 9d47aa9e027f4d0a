"""`longtake evaluate`: score checkpoints on memory tasks, as a resumable grid of Ray tasks that write rows.

A cell is (system, task, a few episodes). Its rows land in the `scores` table in one part with a deterministic name, so
a killed evaluation goes on with the cells that are missing, and the numbers do not depend on the number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from longtake.config import Config, dump, load
from longtake.datasets import worlds
from longtake.errors import UserError, unknown
from longtake.evals.protocol import Protocol
from longtake.evals.task import STRANGER
from longtake.grid import Cell, GridReport, run_grid
from longtake.jobs.evaluate import external_models, fvd
from longtake.jobs.evaluate.check import asked_episodes, beyond_training, protocol_problems, subject_problems
from longtake.jobs.evaluate.external_models import Foreign, Maker
from longtake.jobs.latents import pictures
from longtake.jobs.train.config import PIXELS
from longtake.models.exported import CONFIG, MODEL
from longtake.storage.store import Store, open_store
from longtake.tables.run_record import select
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

CONFIGS = Path(__file__).parents[1] / "configs" / "evaluate"
ORACLE = "nearest_pose"
Variant = Literal["whole", "wiped", "stranger", "reconstruction"]
"""What is scored of a checkpoint: the model, the same with its memory wiped or filled by a stranger's context, or its
tokenizer alone: a ceiling."""
Positive = Annotated[int, Field(ge=1)]


class EvaluateConfig(Config):
    """What to ask of every checkpoint."""

    dataset: str | None = Field(
        None, description="the dataset that the run was trained on when not given; of latents, the one with the pixels"
    )
    protocols: Annotated[list[Protocol], Field(min_length=1)]
    wiped: bool = Field(True, description="also score each model with its memory wiped before generation")
    stranger: bool = Field(True, description="also score each model when it is shown another clip's context")
    systems: dict[str, str] = Field({}, description="models that are not ours: name to FILE.py:MAKER")
    clips_per_cell: Positive = Field(8, description="clips that run side by side in one cell")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="every protocol is scored with each of these seeds, in place of its own"
    )

    def seeded(self) -> list[Protocol]:
        """The protocols, one per seed: what a sampler's noise does to a score is seen in rows that stand apart."""
        if not self.seeds:
            return self.protocols
        return [p.model_copy(update={"seed": seed}) for p in self.protocols for seed in dict.fromkeys(self.seeds)]


@dataclass(frozen=True)
class Subject:
    """A checkpoint to score."""

    run: str
    name: str
    step: int
    dataset: str
    latents: bool = False
    """Whether it lives on an autoencoder's latents, whose ceiling is scored too."""
    chunk: int = 1
    """Frames that it takes and makes at a time."""
    trained_frames: int | None = None
    """Frames of the longest clips that it was trained on."""
    stride: int = 1
    """Source frames from one frame of those clips to the next."""
    cost: tuple[tuple[str, float], ...] = ()
    """What its training had cost by then: column of `scores` and value."""

    @staticmethod
    def read(store: Store, run: str, name: str, step: int, dataset: str) -> Subject:
        """With what the checkpoint says of itself.

        Raises:
            UserError: its config is missing or damaged.
        """
        where = f"{checkpoints.folder(run, step)}/{CONFIG}"
        try:
            told = json.loads(checkpoints.read(store, run, step, CONFIG))
            if told["model"].get("kind") == "autoencoder":
                raise UserError(f"run {run}: it trained a tokenizer; what is scored here are world models")
            if not told["model"]["causal"]:
                raise UserError(f"run {run}: its model is not causal (causal: false): it cannot go on from a context")
            chunk, trained = told["model"].get("chunk") or 1, told["trained_frames"]
            latents, stride = told["tokenizer"] != PIXELS, told.get("stride", 1)
            return Subject(run, name, step, dataset, latents, chunk, trained, stride, _cost(store, run, step))
        except FileNotFoundError:
            raise UserError(f"run {run}: the checkpoint of step {step} has no config ({where} is missing)") from None
        except (ValueError, KeyError) as error:
            raise UserError(f"run {run}: {where} is damaged: {type(error).__name__}: {error}") from None


def _cost(store: Store, run: str, step: int) -> tuple[tuple[str, float], ...]:
    told = checkpoints.manifest(store, run, step)["metrics"]
    return tuple((f"train_{name}", told[name]) for name in ("frames", "worker_s", "bytes_read") if name in told)


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
    strangers: tuple[int, ...] = ()
    """Whose context the system is shown in place of each episode's own; empty: its own."""
    make: Maker | None = None
    """What makes the system, where it is not ours."""
    trained_frames: int | None = None
    """Frames of the longest clips that its model was trained on, where known."""
    cost: tuple[tuple[str, float], ...] = ()
    """What that training had cost, where known: column and value."""

    @property
    def label(self) -> dict[str, Any]:
        """What all rows of the cell say."""
        label: dict[str, Any] = {
            "run": self.run,
            "checkpoint": self.step,
            "task": self.protocol.task,
            "system": self.system,
            "protocol": self.protocol.hash,
            "dataset": self.dataset,
            "split": self.protocol.split,
            "seed": self.protocol.seed,
        }
        if self.protocol.limit:
            label["partial"] = self.protocol.limit
        if self.trained_frames is not None:
            label["beyond_training"] = max(0, self.protocol.stream - self.trained_frames)
        return label | dict(self.cost)

    @property
    def share(self) -> str:
        """Its episodes, as a word."""
        return f"{self.episodes[0]:06d}x{len(self.episodes)}"

    def name(self, share: str) -> str:
        """The part of the `scores` table that holds a share of the system's rows."""
        system = self.system.replace("/", "-")
        return "-".join((self.run, f"{self.step:06d}", system, self.protocol.task, self.protocol.hash, share))


def main(
    config: str,
    overrides: list[str],
    store: str,
    dry_run: bool,
    runs: str,
    tasks: str | None,
    limit: int | None = None,
    follow: bool = False,
) -> None:
    """The command: check, print the grid, score what is missing."""
    where = open_store(store)
    settings = limited(_only_tasks(load(EvaluateConfig, config, overrides, search=CONFIGS), tasks), limit)
    if follow and not dry_run:
        from longtake.jobs.evaluate import follow as beside

        raise SystemExit(1 if beside.follow(settings, where, runs) else 0)
    subjects = find_subjects(where, runs)
    cells = plan_cells(settings, where, subjects)
    loud = beyond_training(settings.protocols, subjects)
    if loud:
        print(loud)
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


def limited(config: EvaluateConfig, limit: int | None) -> EvaluateConfig:
    """The config with protocols of fewer episodes, which are other protocols: their scores stand apart."""
    if limit is None:
        return config
    fewer = [p.model_copy(update={"limit": limit}) if limit < p.episodes else p for p in config.protocols]
    return config.model_copy(update={"protocols": fewer})


def find_subjects(store: Store, runs: str) -> list[Subject]:
    """The newest checkpoint of each named run: `latest`, `none`, or ids separated by commas.

    Raises:
        UserError: no such run, or one without a checkpoint or whose checkpoint is damaged or has no config.
    """
    ids = select(store, runs) if runs != "none" else []
    table = store.table("runs").set_index("run")
    found: list[Subject] = []
    problems: list[str] = []
    for run in ids:
        try:
            step = checkpoints.require_newest(store, run)
            checkpoints.require_whole(store, run, step, MODEL)
            found.append(
                Subject.read(store, run, str(table.loc[run, "name"]), step, str(table.loc[run, "dataset_name"]))
            )
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return found


def plan_cells(config: EvaluateConfig, store: Store, subjects: Sequence[Subject]) -> list[Cell]:
    """The grid: floors and oracle once per dataset and protocol, then every checkpoint with its controls and ceiling.

    Raises:
        UserError: a task that the dataset or a model cannot serve, too few or too short episodes.
    """
    problems: list[str] = []
    cells: list[Cell] = []
    others = external_models.read(config.systems)
    asked = {subject.run: config.dataset or pictures.true_of(store, subject.dataset) for subject in subjects}
    names = [config.dataset] if config.dataset else list(dict.fromkeys(asked.values()))
    if not names:
        raise UserError("dataset: name one; there is no run whose dataset could be taken")
    for name in names:
        dataset = store.dataset(name)
        own = [subject for subject in subjects if asked[subject.run] == name]
        for short in config.seeded():
            for protocol, its in _full(short, dataset, own):
                found = protocol_problems(protocol, dataset)
                found += [line for subject in its for line in subject_problems(protocol, subject, dataset, store)]
                if config.stranger and protocol.scored < 2:
                    told = "a stranger's context needs 2 at least, or set stranger: false"
                    found.append(f"{protocol.task}.episodes: {told}")
                problems += found
                if not found:
                    cells += _protocol_cells(config, store, protocol, dataset, its, others)
    if problems:
        raise UserError(*problems)
    return cells


def _full(short: Protocol, dataset: Dataset, subjects: Sequence[Subject]) -> Iterator[tuple[Protocol, list[Subject]]]:
    """A protocol with what the job knows, the dataset, its worlds' size and a stride, and whom it is asked of.

    Models that were trained at unlike strides are asked under unlike protocols, unless the evaluation says one for all.
    """
    around = worlds.wraps(dataset)
    for stride in [short.stride] if short.stride else sorted({subject.stride for subject in subjects} or {1}):
        its = [subject for subject in subjects if short.stride or subject.stride == stride]
        more = {"dataset": dataset.fingerprint, "stride": stride if stride > 1 else None, "wraps": around}
        yield short.model_copy(update=more), its


def _protocol_cells(
    config: EvaluateConfig,
    store: Store,
    protocol: Protocol,
    dataset: Dataset,
    subjects: Sequence[Subject],
    others: Sequence[Foreign],
) -> Iterator[Cell]:
    from longtake.evals.registry import TASKS

    systems = [*_floors(protocol, dataset)]
    for subject in subjects:
        systems += _systems(subject, config, protocol)
    for other in others:
        systems += _foreign(other, config, protocol)
    trained = {subject.run: subject.trained_frames for subject in subjects}
    costs = {(subject.run, subject.step): subject.cost for subject in subjects}
    makers = {(other.name, other.run): other.make for other in others}
    whole = TASKS[protocol.task].together
    shares = _shares(dataset, protocol, protocol.scored if whole else config.clips_per_cell)
    for system, run, step, variant in systems:
        make = makers.get((system.partition("/")[0], run))
        for episodes, after in shares:
            strangers = after if variant == "stranger" else ()
            asked = ScoreCell(store.uri, dataset.name, protocol, system, run, step, variant, episodes, strangers)
            cell = replace(asked, make=make, trained_frames=trained.get(run), cost=costs.get((run, step), ()))
            yield Cell(cell.name(cell.share), cell)


def _foreign(other: Foreign, config: EvaluateConfig, protocol: Protocol) -> Iterator[Scored]:
    """What is scored of a model that is not ours; its memory can be wiped where it has `forget`."""
    from longtake.evals.registry import TASKS

    yield other.name, other.run, 0, "whole"
    if TASKS[protocol.task].beside == "controls":
        if config.wiped and other.forgets:
            yield f"{other.name}/wiped", other.run, 0, "wiped"
        if config.stranger:
            yield f"{other.name}/stranger", other.run, 0, "stranger"


Scored = tuple[str, str, int, Variant]
"""Name of a system, run, step, variant."""


def _floors(protocol: Protocol, dataset: Dataset) -> Iterator[Scored]:
    """Floors and oracle, where the task has a use for them; the oracle needs a pose."""
    from longtake.evals.registry import TASKS

    if TASKS[protocol.task].beside == "nothing":
        return
    for floor in TASKS[protocol.task].floors:
        if dataset.has_pose or not floor.startswith(ORACLE):
            yield floor, NO_RUN, 0, "stranger" if floor.endswith(STRANGER) else "whole"


def _systems(subject: Subject, config: EvaluateConfig, protocol: Protocol) -> Iterator[Scored]:
    """What is scored of a checkpoint: the model, its controls and its ceiling."""
    from longtake.evals.registry import TASKS

    yield subject.name, subject.run, subject.step, "whole"
    if TASKS[protocol.task].beside != "controls":
        return
    controls: dict[Variant, bool] = {
        "wiped": config.wiped,
        "stranger": config.stranger,
        "reconstruction": subject.latents and TASKS[protocol.task].frames,
    }
    for variant, wanted in controls.items():
        if wanted:
            yield f"{subject.name}/{variant}", subject.run, subject.step, variant


def _shares(dataset: Dataset, protocol: Protocol, size: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The protocol's episodes in cells of a fixed size, so that the batch shapes never depend on the workers; and of
    each the episode after it, round about: its stranger."""
    episodes = [int(e) for e in asked_episodes(protocol, dataset).episode.head(protocol.scored)]
    others = [*episodes[1:], *episodes[:1]]
    return [
        (tuple(episodes[first : first + size]), tuple(others[first : first + size]))
        for first in range(0, len(episodes), size)
    ]


def evaluate(cells: Sequence[Cell], store: Store) -> GridReport:
    """Score the cells that are missing, one CPU each, with a progress bar; failed cells are named and the rest goes on.

    Rows hold a protocol's hash; what it stands for is kept beside them, in `protocols/HASH.json`.
    """
    from longtake.cluster.launch import launch
    from longtake.jobs.display.progress_bar import grid_bar
    from longtake.jobs.evaluate.cell import score_cell

    for protocol in {cell.payload.protocol.hash: cell.payload.protocol for cell in cells}.values():
        store.write_bytes(f"protocols/{protocol.hash}.json", protocol.model_dump_json(indent=1).encode())
    with launch(), grid_bar("evaluate") as bar:
        external_models.travel(cell.payload.make for cell in cells)
        report = run_grid(store, "scores", cells, score_cell, on_done=bar)
    for part, reason in report.failed.items():
        print(f"failed: {part}: {reason}")
    for clips in sorted(set(fvd.append_fvd(store, cells))):
        print(f"fvd of {clips} clips: comparable with others of {clips} clips only{fvd.rank_told(clips)}")
    return report
