"""What a run may be called, and that every verb calls it the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.jobs.diagnose.facts import gather as diagnose
from longtake.jobs.evaluate import follow, grid
from longtake.jobs.export import command as export
from longtake.jobs.latents import tokenizers
from longtake.jobs.report.gather import gather as report
from longtake.jobs.runs import command as runs
from longtake.jobs.sweep import command as sweep
from longtake.jobs.train.config import InitConfig
from longtake.jobs.train.init_weights import resolve
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.find import AUTOENCODERS, SWEEPS, TRAININGS, WORLD_MODELS, find_ids, find_run, find_runs

RUNS = (  # id, kind, name
    ("20260101-a1", "train", "maze"),
    ("20260102-b2", "train", "maze"),
    ("20260102-b3", "train", "torus"),
    ("20260103-c2", "autoencoder", "tiny"),
    ("20260103-c3", "autoencoder", "maze"),
    ("20260104-d4", "sweep", "blocks"),
    ("20260105-e5", "sweep", "blocks"),
    ("20260106-f6", "collect", "maze"),
)
PSNR = {"20260101-a1": 21.0, "20260102-b2": 25.0, "20260102-b3": 19.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = open_store(tmp_path_factory.mktemp("find"))
    rows = [{"run": run, "kind": kind, "name": name, "status": "done"} for run, kind, name in reversed(RUNS)]
    tables.append(place, "runs", rows, part="all")
    score(place, "revisit", PSNR)
    return place


def score(store: Store, task: str, values: dict[str, float]) -> None:
    label = {"checkpoint": 9, "task": task, "dataset": "d", "split": "test", "seed": 0, "protocol": "p" * 12}
    label |= {"metric": "psnr", "better": "higher", "distance": 4}
    rows = [
        label | {"run": run, "system": run[-2:], "episode": episode, "frame": 0, "value": value + episode}
        for run, value in values.items()
        for episode in range(2)
    ]
    tables.append(store, "scores", rows, part=f"scores-{task}")


@pytest.mark.parametrize(
    ("name", "kinds", "run"),
    [
        ("20260101-a1", TRAININGS, "20260101-a1"),
        ("latest", TRAININGS, "20260103-c3"),
        ("latest", WORLD_MODELS, "20260102-b3"),
        ("latest", SWEEPS, "20260105-e5"),
        ("latest", (), "20260106-f6"),
        ("best", WORLD_MODELS, "20260102-b2"),
        ("maze", WORLD_MODELS, "20260102-b2"),
        ("maze", AUTOENCODERS, "20260103-c3"),
        ("maze", (), "20260106-f6"),
        ("blocks", SWEEPS, "20260105-e5"),
        ("20260101", TRAININGS, "20260101-a1"),
        ("tiny", TRAININGS, "20260103-c2"),
        ("2026010", ("collect",), "20260106-f6"),
    ],
)
def test_a_name_stands_for_one_run(store: Store, name: str, kinds: tuple[str, ...], run: str) -> None:
    assert find_run(store, name, kinds)["run"] == run


def test_names_with_commas_between_them_are_each_one_run(store: Store) -> None:
    ids = ["20260101-a1", "20260102-b2"]
    assert find_ids(store, " 20260101-a1, maze,best,20260101", WORLD_MODELS) == ids


def test_all_that_is_wrong_is_told_at_once_with_the_nearest_name(store: Store) -> None:
    with pytest.raises(UserError) as caught:
        find_runs(store, ["maz", "20260102", "20260104-d4", "bset", ""], WORLD_MODELS)
    there = "there are: 20260101-a1, 20260102-b2, 20260102-b3, best, latest, maze, torus"
    assert caught.value.lines == (
        f"unknown run 'maz' (did you mean maze?); {there}",
        "run '20260102' is the beginning of 2 ids: 20260102-b2, 20260102-b3; name one",
        "run 20260104-d4 is of kind sweep; what is taken here is train",
        f"unknown run 'bset' (did you mean best?); {there}",
        f"unknown run ''; {there}",
    )


def test_of_sweeps_none_is_best(store: Store) -> None:
    with pytest.raises(UserError, match="unknown run 'best'"):
        find_run(store, "best", SWEEPS)


def test_the_best_is_one_that_all_tasks_agree_on(store: Store, tmp_path: Path) -> None:
    other = open_store(tmp_path)
    tables.append(other, "runs", store.table("runs").drop(columns="event_time"), part="all")
    with pytest.raises(UserError, match="^best: unknown metric 'psnr'; there are: none yet"):
        find_run(other, "best")
    score(other, "revisit", PSNR)
    score(other, "cuts", PSNR)
    assert find_run(other, "best")["run"] == "20260102-b2"
    score(other, "rollout", {run: -value for run, value in PSNR.items()})
    with pytest.raises(UserError) as caught:
        find_run(other, "best")
    tasks = "of cuts it is 20260102-b2; of revisit it is 20260102-b2; of rollout it is 20260102-b3"
    assert caught.value.lines == (f"best: tasks name unlike runs: {tasks}: name one of them",)


def test_a_store_without_runs_says_what_to_start(tmp_path: Path) -> None:
    empty = open_store(tmp_path)
    for kinds, verb in ((TRAININGS, "train"), (WORLD_MODELS, "train"), (SWEEPS, "sweep")):
        with pytest.raises(UserError, match=f"no .* run in store .* yet; start one: longtake {verb} CONFIG"):
            find_run(empty, "latest", kinds)


ASK = {
    "evaluate": lambda store, name: grid.find_subjects(store, name),
    "evaluate --follow": lambda store, name: follow.follow(None, store, name),  # type: ignore[arg-type]
    "export": lambda store, name: export.main(name, "out", None, store.uri),
    "report": lambda store, name: report(store, [name]),
    "diagnose": lambda store, name: diagnose(store, [name]),
    "runs": lambda store, name: runs.main(store.uri, name),
    "init.run": lambda store, name: resolve(store, InitConfig(run=name)),
    "sweep --resume": lambda store, name: sweep.earlier(store, name, []),
    "tokenizer": lambda store, name: tokenizers.resolve(store, name),
}


@pytest.mark.parametrize("verb", ASK)
def test_every_verb_asks_the_same(store: Store, verb: str) -> None:
    """`train --resume` and `warm_start` too: tests of train and sweep, which have datasets."""
    with pytest.raises(UserError, match=r"unknown (run|tokenizer) 'latst' \(did you mean latest\?\); there are: "):
        ASK[verb](store, "latst")
    with pytest.raises(UserError, match="is the beginning of"):
        ASK[verb](store, "2026")
