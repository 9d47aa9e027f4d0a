"""Which cells an evaluation has: every checkpoint with its controls, beside what needs no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from longtake.cluster import accelerators
from longtake.cluster.accelerators import AUTO
from longtake.datasets import worlds
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.evals.task import STRANGER
from longtake.grid import Cell, GridReport, run_grid
from longtake.jobs.evaluate import external_models
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint, ScoreCell, Variant
from longtake.jobs.evaluate.check import asked_episodes, protocol_problems, subject_problems
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.external_models import ExternalModel
from longtake.jobs.evaluate.set_metrics import append_distances
from longtake.jobs.latents import pictures
from longtake.models.exported import MODEL
from longtake.storage.store import Store
from longtake.tables import find
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset


ORACLE = "nearest_pose"
OF_A_CARD = 0.25
"""What a model's cell takes of a card where it is not said: while one reads and compares, others generate."""


def find_subjects(store: Store, runs: str) -> list[EvaluatedCheckpoint]:
    """The newest checkpoint of each named run: `none`, or what `find.find_ids` takes.

    Raises:
        UserError: no such run, or one without a checkpoint or whose checkpoint is damaged or has no config.
    """
    ids = find.find_ids(store, runs, find.WORLD_MODELS) if runs != "none" else []
    table = store.table("runs").set_index("run")
    subjects: list[EvaluatedCheckpoint] = []
    problems: list[str] = []
    for run in ids:
        try:
            step = checkpoints.require_newest(store, run)
            checkpoints.require_whole(store, run, step, MODEL)
            subjects.append(
                EvaluatedCheckpoint.read(
                    store, run, str(table.loc[run, "name"]), step, str(table.loc[run, "dataset_name"])
                )
            )
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return subjects


def plan_cells(config: EvaluateConfig, store: Store, subjects: Sequence[EvaluatedCheckpoint]) -> list[Cell]:
    """The grid: floors and oracle once per dataset and protocol, then every checkpoint with its controls and ceiling.

    Raises:
        UserError: a task that the dataset or a model cannot serve, too few or too short episodes.
    """
    problems: list[str] = []
    cells: list[Cell] = []
    config = _resolved(config)
    others = external_models.read(config.systems)
    dataset_of = {subject.run: config.dataset or pictures.true_of(store, subject.dataset) for subject in subjects}
    names = [config.dataset] if config.dataset else list(dict.fromkeys(dataset_of.values()))
    if not names:
        raise UserError("dataset: name one; there is no run whose dataset could be taken")
    for name in names:
        dataset = store.dataset(name)
        own = [subject for subject in subjects if dataset_of[subject.run] == name]
        for short in config.seeded():
            for protocol, its in _full(short, dataset, own):
                if config.precision == "autocast":
                    protocol = protocol.model_copy(update={"precision": "autocast"})
                lines = protocol_problems(protocol, dataset)
                lines += [line for subject in its for line in subject_problems(protocol, subject, dataset, store)]
                if config.stranger and protocol.scored < 2:
                    hint = "a stranger's context needs 2 at least, or set stranger: false"
                    lines.append(f"{protocol.task}.episodes: {hint}")
                problems += lines
                if not lines:
                    cells += _protocol_cells(config, store, protocol, dataset, its, others)
    if problems:
        raise UserError(*problems)
    return cells


def _resolved(config: EvaluateConfig) -> EvaluateConfig:
    """The config with what `auto` comes to here."""
    from longtake.cluster import launch

    gpus = config.gpus_per_cell
    if gpus == AUTO:
        gpus = OF_A_CARD if launch.count_gpus() else 0.0
    precision = config.precision
    if precision == "auto":
        precision = "autocast" if gpus else "fp32"
    return config.model_copy(update={"gpus_per_cell": gpus, "precision": precision})


def _full(
    short: Protocol, dataset: Dataset, subjects: Sequence[EvaluatedCheckpoint]
) -> Iterator[tuple[Protocol, list[EvaluatedCheckpoint]]]:
    """A protocol with what the job knows, the dataset, its worlds' size and a stride, and whom it is asked of.

    Models that were trained at unlike strides are asked under unlike protocols, unless the evaluation says one for all.
    """
    around = worlds.wraps(dataset)
    for stride in [short.stride] if short.stride else sorted({subject.stride for subject in subjects} or {1}):
        its = [subject for subject in subjects if short.stride or subject.stride == stride]
        more = {"dataset": dataset.fingerprint, "stride": stride if stride > 1 else None, "wraps": around}
        yield _at_most(short.model_copy(update=more), dataset), its


def _at_most(protocol: Protocol, dataset: Dataset) -> Protocol:
    """The protocol with all episodes of a split, where it asks for more: another one, whose scores stand apart."""
    try:
        episodes = len(asked_episodes(protocol, dataset))
    except ValueError:  # of lengths that do not fit, which are told with the other problems
        return protocol
    return protocol.model_copy(update={"episodes": episodes}) if 0 < episodes < protocol.scored else protocol


def fewer_episodes(config: EvaluateConfig, cells: Sequence[Cell]) -> Iterator[str]:
    """A line for each task that is asked of fewer episodes than the evaluation says."""
    wanted = {(protocol.task, protocol.episodes) for protocol in config.protocols}
    protocols = {(cell.payload.protocol.hash, cell.payload.dataset): cell.payload.protocol for cell in cells}
    for (_, name), protocol in protocols.items():
        if (protocol.task, protocol.episodes) not in wanted:
            yield (
                f"{protocol.task}: split {protocol.split} of {name} has {protocol.episodes} episodes, fewer than asked "
                f"for: all of them are taken, under a protocol of its own ({protocol.hash})"
            )


def _protocol_cells(
    config: EvaluateConfig,
    store: Store,
    protocol: Protocol,
    dataset: Dataset,
    subjects: Sequence[EvaluatedCheckpoint],
    others: Sequence[ExternalModel],
) -> Iterator[Cell]:
    from longtake.evals.registry import TASKS

    systems = [*_floors(protocol, dataset)]
    for subject in subjects:
        systems += _systems(subject, config, protocol)
    for other in others:
        systems += _external(other, config, protocol)
    trained = {subject.run: subject.trained_frames for subject in subjects}
    costs = {(subject.run, subject.step): subject.cost for subject in subjects}
    makers = {(other.name, other.run): other.make for other in others}
    whole = TASKS[protocol.task].needs_all_clips
    shares = _shares(dataset, protocol, protocol.scored if whole else config.clips_per_cell)
    for system, run, step, variant in systems:
        make = makers.get((system.partition("/")[0], run))
        for episodes, after in shares:
            strangers = after if variant == "stranger" else ()
            plain = ScoreCell(store.uri, dataset.name, protocol, system, run, step, variant, episodes, strangers)
            cell = replace(plain, make=make, trained_frames=trained.get(run), cost=costs.get((run, step), ()))
            if run != NO_RUN and make is None:
                cell = replace(cell, gpus=accelerators.least(config.gpus_per_cell))
            yield Cell(cell.name(cell.share), cell, cell.gpus)


def _external(other: ExternalModel, config: EvaluateConfig, protocol: Protocol) -> Iterator[Scored]:
    """What is scored of a model that is not ours; its memory can be wiped where it has `forget`."""
    from longtake.evals.registry import TASKS

    yield other.name, other.run, 0, "whole"
    if TASKS[protocol.task].compared_with == "controls":
        if config.wiped and other.forgets:
            yield f"{other.name}/wiped", other.run, 0, "wiped"
        if config.stranger:
            yield f"{other.name}/stranger", other.run, 0, "stranger"


Scored = tuple[str, str, int, Variant]
"""Name of a system, run, step, variant."""


def _floors(protocol: Protocol, dataset: Dataset) -> Iterator[Scored]:
    """Floors and oracle, where the task has a use for them; the oracle needs a pose."""
    from longtake.evals.registry import TASKS

    if TASKS[protocol.task].compared_with == "nothing":
        return
    for floor in TASKS[protocol.task].baselines:
        if dataset.has_pose or not floor.startswith(ORACLE):
            yield floor, NO_RUN, 0, "stranger" if floor.endswith(STRANGER) else "whole"


def _systems(subject: EvaluatedCheckpoint, config: EvaluateConfig, protocol: Protocol) -> Iterator[Scored]:
    """What is scored of a checkpoint: the model, its controls and its ceiling."""
    from longtake.evals.registry import TASKS

    yield subject.name, subject.run, subject.step, "whole"
    if TASKS[protocol.task].compared_with != "controls":
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
    for line in append_distances(store, cells):
        print(line)
    return report
