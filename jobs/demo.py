"""`longtake demo`: the whole sentence on this machine, with real mazes, a real training and a scored memory.

Every stage is one of the other verbs. What is there already is reused, so a demo that was killed goes on, and a second
one is over in a moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from longtake.config import Config, dump, load
from longtake.jobs.collect import command as collect
from longtake.jobs.display import show
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate import grid
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.results import command as results
from longtake.jobs.results.wide import side_by_side
from longtake.jobs.train import command as train
from longtake.jobs.train.config import WorldModelTraining
from longtake.storage.store import Store, open_store
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints

if TYPE_CHECKING:
    import pandas as pd

    from longtake.tables.scores import Difference

CONFIGS = Path(__file__).parent / "configs" / "demo"


class DemoConfig(Config):
    """Names of the configs that the stages run; the first training has a memory, the others are its contrasts."""

    collect: str
    """The config of the dataset to record."""
    train: Annotated[list[str], Field(min_length=2)]
    """Those of the trainings: the first has a memory, the others are its contrasts."""
    evaluate: str
    """That of the evaluation."""
    task: str = Field("revisit", description="the task whose differences are printed at the end, and drawn")
    all_distances: bool = Field(
        False, description="means of all distances, as papers print them, not of those beyond the windows' reach"
    )
    minutes: int = Field(14, description="what it takes on two cores, about [minutes]")


def main(config: str, overrides: list[str], store: str, dry_run: bool) -> None:
    """The command."""
    settings = load(DemoConfig, config, overrides, search=CONFIGS)
    trainings = [load(WorldModelTraining, name, search=train.CONFIGS) for name in settings.train]
    evaluation = load(EvaluateConfig, settings.evaluate, search=evaluate_config.CONFIGS)
    if dry_run:
        print(dump(settings))
        return
    where = open_store(store)
    where.require_writable()
    collect.check(load(collect.CollectConfig, settings.collect, search=collect.CONFIGS), where)
    run_demo(settings, trainings, evaluation, where)


def run_demo(
    settings: DemoConfig, trainings: list[WorldModelTraining], evaluation: EvaluateConfig, store: Store
) -> None:
    """Collect, train, evaluate, report; then say what was found, draw it, and say where it lies."""
    from longtake.cluster.demand import Demand
    from longtake.cluster.launch import launch
    from longtake.jobs.report import command as report
    from longtake.models.analysis.reach import window_reach

    began = time.monotonic()
    stages = 3 + len(trainings)
    print(
        f"Longtake demo: {stages} stages, about {settings.minutes} minutes on two cores. "
        f"Everything goes to {store.uri}",
        flush=True,
    )
    with launch(Demand(max(config.workers for config in trainings))):
        with stage(1, stages, f"collect {settings.collect}: real Doom mazes, a new one per episode"):
            collect.run(load(collect.CollectConfig, settings.collect, search=collect.CONFIGS), store)
        runs = []
        for number, config in enumerate(trainings):
            with stage(2 + number, stages, f"train {config.name}: {config.steps} steps, {config.workers} workers"):
                runs.append(train.train(config, store, reuse=True))
        with stage(stages - 1, stages, "evaluate: come back to places of mazes never trained on"):
            subjects = [subject(store, run, config) for run, config in zip(runs, trainings, strict=True)]
            failed = grid.evaluate(grid.plan_cells(evaluation, store, subjects), store).failed
            if failed:
                raise SystemExit(1)
        with stage(stages, stages, "report"):
            page = Path(report.build(store, runs, None if store.is_folder else Path("report.html")))
    window = window_reach(trainings[0].model)
    scores = demo_scores(store, evaluation, subjects)
    beyond = 0 if settings.all_distances else window
    where = f"beyond the {beyond} frames that its windows reach" if beyond else "of all distances"
    print(f"\nMeans {where} ± 95 % interval over episodes:")
    show.show(side_by_side(store, scores[scores.distance > beyond]))
    task_scores = scores[scores.task == settings.task]
    twins = [config.name for config in trainings if config.diffusion.null_context == 1]
    print("\n" + verdicts(task_scores, [config.name for config in trainings], twins, window))
    where = f"task == '{settings.task}' and protocol == '{task_scores.protocol.iloc[0]}' and run in {[*runs, NO_RUN]}"
    picture = page.with_suffix(".png")
    results.draw_scores(store, task_scores, str(picture), where)
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes.\n" + what_next(store, page, runs, picture))


@contextmanager
def stage(number: int, of: int, title: str) -> Iterator[None]:
    """A heading, and the time that the stage took."""
    print(f"\n[{number}/{of}] {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"      {time.monotonic() - began:.0f} s", flush=True)


def subject(store: Store, run: str, config: WorldModelTraining) -> EvaluatedCheckpoint:
    """The finished checkpoint of a run."""
    step = checkpoints.newest(store, run)
    assert step == config.steps, f"run {run} ended at step {step} of {config.steps}"
    return EvaluatedCheckpoint.read(store, run, config.name, step, config.data.first)


def demo_scores(store: Store, evaluation: EvaluateConfig, subjects: list[EvaluatedCheckpoint]) -> pd.DataFrame:
    """The rows of these checkpoints, and of the floors, under the demo's protocols."""
    fingerprint = store.dataset(subjects[0].dataset).fingerprint
    protocols = [p.model_copy(update={"dataset": fingerprint}).hash for p in evaluation.protocols]
    scores = store.table("scores")
    ours = scores.run.isin([*(s.run for s in subjects), NO_RUN])
    return scores[ours & scores.protocol.isin(protocols)]


def verdicts(scores: pd.DataFrame, names: list[str], twins: Sequence[str], window: int) -> str:
    """One line per claim: the paired difference in PSNR, its interval, and whether it is beyond doubt.

    The first model against floors, the other models and itself without its context; at last what its memory is worth,
    which is what it has above the best of those that cannot remember: floors, itself wiped or misled, its `twins`.
    """
    from longtake.tables.scores import paired_difference

    model, *contrasts = names
    controls = ["copy_last", "context_mean", f"{model}/wiped", f"{model}/stranger", *twins]
    rivals = [name for name in dict.fromkeys([*controls, *contrasts]) if name in set(scores.system)]
    wide = max(len(f"{model} - {rival}") for rival in rivals) + 2
    gaps = {rival: paired_difference(scores, model, rival, beyond=window) for rival in rivals}
    lines = [f"  {f'{model} - {rival}':<{wide}}{_told(gap)}" for rival, gap in gaps.items()]
    best = min((rival for rival in rivals if rival in controls), key=lambda rival: gaps[rival].mean)
    lines.append(f"Memory of {model}, above the best of all that have none ({best}): {_told(gaps[best])}")
    return "Paired over held-out mazes, PSNR beyond what its windows reach, 95 % interval:\n" + "\n".join(lines)


def _told(gap: Difference) -> str:
    word = "better" if gap.low > 0 else "worse" if gap.high < 0 else "undecided"
    return f"{gap.mean:+.2f} dB  [{gap.low:+.2f}, {gap.high:+.2f}]  {word}"


def what_next(store: Store, page: Path, runs: list[str], picture: Path) -> str:
    """Where everything lies, and what to type next."""
    return "\n".join(
        [
            f"report    {page}",
            f"picture   {picture}",
            f"store     {store.uri}  (datasets/, runs/, tables/)",
            f"runs      {', '.join(runs)}",
            "next      longtake results scores --by task,system",
            "          longtake train demo-block-ssm --set steps=4000     # train longer",
            "          python -c \"import longtake; print(longtake.open_store('" + store.uri + "').table('scores'))\"",
        ]
    )
