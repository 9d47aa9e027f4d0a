"""The study of a sweep is a function of what happened, whatever happens to its driver."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from longtake.errors import UserError
from longtake.storage.store import open_store
from longtake.tables import table as tables
from longtake.tuning import space
from longtake.tuning.search_config import Pruning, Sampling
from longtake.tuning.space import Axis
from longtake.tuning.study import Assignment, Study
from tests.longtake.tuning.played import Killed, Objective, play, told
from tests.longtake.tuning.toy_sweep import BRANCHES, STEPS, objective, study_of


def test_the_same_seed_is_the_same_sweep(tmp_path: Path) -> None:
    studies = [study_of(open_store(tmp_path / name), seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for study in studies:
        play(study, trials=10)
    one, same, other = map(told, studies)
    assert one == same
    assert one != other
    assert {row["state"] for row in one} == {"done", "pruned"}
    (best,) = studies[0].best()
    assert best.labels["good"] is True


@pytest.mark.parametrize("kill_at", [0, 1, 3, 7, 12, 13, 20])
def test_a_killed_driver_changes_nothing(tmp_path: Path, kill_at: int) -> None:
    """No trial is lost, none is there twice, and the search goes on as if it had not been killed."""
    undisturbed = study_of(open_store(tmp_path / "whole"))
    play(undisturbed, trials=8)
    store = open_store(tmp_path / "killed")
    with pytest.raises(Killed):
        play(study_of(store), trials=8, kill_at=kill_at)
    resumed = study_of(store)
    begun = [row["run"] for row in resumed.rows()]
    play(resumed, trials=8)
    assert told(resumed) == told(undisturbed)
    assert [row["run"] for row in resumed.rows()][: len(begun)] == begun
    table = store.table("trials")
    assert table["trial"].tolist() == list(range(8))
    assert table["state"].tolist() == [row["state"] for row in resumed.rows()]


def test_a_torn_journal_is_mended(tmp_path: Path) -> None:
    """Of a write that a power cut tore, nothing happened; Optuna reads the file by itself."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    store = open_store(tmp_path)
    study = study_of(store)
    play(study, trials=2)
    before = told(study)
    study.ask()
    file = Path(store.path("sweeps/s/study.journal"))
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"\n", 0, len(whole) - 1) - 5])
    assert told(study_of(store)) == before
    play(study_of(store), trials=4)
    own = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(JournalFileBackend(str(file))))
    assert [trial.number for trial in own.trials] == [0, 1, 2, 3]


def test_ends_are_told_with_their_reasons(tmp_path: Path) -> None:
    study = study_of(open_store(tmp_path))
    runs = [study.ask() for _ in range(3)]
    assert not study.report(0, 2, float("nan"), frames=20, seconds=1.0)
    study.finish(1, "planted")
    study.finish(2)
    study.finish(0, "too late")
    rows = study.rows()
    assert [row["state"] for row in rows] == ["failed"] * 3
    assert [row["reason"] for row in rows] == [
        "the objective is nan at step 2",
        "planted",
        "it ended at step None of 8",
    ]
    assert [row["run"] for row in rows] == [given.run for given in runs]
    assert study.best() == []


def test_seconds_add_up_over_sessions(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    study = study_of(store)
    study.ask()
    for step, seconds in ((2, 1.0), (4, 2.5)):
        study.report(0, step, 1.0, frames=0, seconds=seconds)
    again = study_of(store)
    again.report(0, 6, 1.0, frames=0, seconds=3.0)
    assert again.rows()[0]["seconds"] == pytest.approx(5.5)


def played(tmp_path: Path, name: str, trials: int, objective: Objective = objective, **more: Any) -> Study:
    study = study_of(open_store(tmp_path / name), **more)
    play(study, trials, value=objective)
    return study


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_branches_are_searched(tmp_path: Path, method: Literal["tpe", "random"]) -> None:
    axes = {"good": Axis(choice=[True, False]), "extra": Axis(uniform=[0.0, 1.0], when={"good": True})}
    study = played(tmp_path, method, 12, space=axes, sampling=Sampling(method=method, startup=3))
    rows = study.rows()
    assert {row["good"] for row in rows} == {True, False}
    assert all((row["extra"] is None) == (row["good"] is False) for row in rows)
    table = open_store(tmp_path / method).table("trials")
    assert (table["extra"].isna() == ~table["good"]).all()


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_no_point_is_tried_twice(tmp_path: Path, method: Literal["tpe", "random"]) -> None:
    """It would only end as before: all points come once, also after a kill, and then there are none."""
    asked: dict[str, Any] = {"space": BRANCHES, "sampling": Sampling(method=method, startup=4)}

    def value(given: Assignment, step: int) -> float:
        return step * len(given.labels) + given.number / 100

    whole = played(tmp_path, "whole", 30, value, **asked)
    found = {json.dumps({field: row[field] for field in BRANCHES}) for row in whole.rows()}
    assert len(found) == 30 == space.size(BRANCHES)
    with pytest.raises(UserError, match="all 30 points of its space have been tried"):
        whole.ask()
    store = open_store(tmp_path / "killed")
    with pytest.raises(Killed):
        play(study_of(store, **asked), 30, 90, value)
    resumed = study_of(store, **asked)
    play(resumed, 30, value=value)
    assert told(resumed) == told(whole)


def test_a_search_that_proposed_what_was_tried_looks_beside_it() -> None:
    """On 64 points, of which 11 are good, it meets far more of them in 24 trials than chance does."""
    axes = {"a": Axis(choice=list(range(8))), "b": Axis(choice=list(range(8)))}

    def good(method: Literal["tpe", "random"], seed: int) -> int:
        sampling, pruning = Sampling(method=method, seed=seed), Pruning(method="none")
        study = study_of(None, space=axes, direction="minimize", sampling=sampling, pruning=pruning)
        play(study, 24, value=lambda given, step: 2 * abs(int(given.labels["a"]) - 5) + abs(int(given.labels["b"]) - 2))
        return sum(row["objective"] <= 3 for row in study.rows())

    assert sum(good("tpe", seed) for seed in range(4)) > 1.5 * sum(good("random", seed) for seed in range(4))


def test_the_median_stops_the_lower_half(tmp_path: Path) -> None:
    study = played(tmp_path, "median", 10, pruning=Pruning(method="median", first=4))
    rows = study.rows()
    assert {row["state"] for row in rows} == {"done", "pruned"}
    curves = study.curves()
    for number, row in enumerate(rows):
        others = [curves[n][row["step"]] for n in range(number) if rows[n]["state"] == "done"]
        if row["state"] == "pruned":
            assert row["step"] >= 4 and row["objective"] < statistics.median(others)


def test_a_grid_is_every_point_in_order(tmp_path: Path) -> None:
    study = played(tmp_path, "grid", 30, space=BRANCHES, sampling=Sampling(method="grid"), objective=lambda *_: 1.0)
    points = list(space.points(BRANCHES))
    assert [{k: row[k] for k in point} for row, point in zip(study.rows(), points, strict=True)] == points


@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_several_objectives_prune_on_the_first_and_keep_the_costs(
    tmp_path: Path, method: Literal["tpe", "nsga2"]
) -> None:
    sampling = Sampling(method=method, startup=3, population=4)
    study = played(tmp_path, "a", 12, sampling=sampling, against=["bytes"])
    assert told(study) == told(played(tmp_path, "b", 12, sampling=sampling, against=["bytes"]))
    rows = study.rows()
    assert {row["state"] for row in rows} == {"done", "pruned"}
    assert all(row["bytes"] == 100 * row["extra"] for row in rows)
    assert len(study.best(3)) == 3
    silent = study_of(open_store(tmp_path / "silent"), against=["bytes"])
    silent.ask()
    assert silent.report(0, STEPS, 1.0, frames=0, seconds=0)
    silent.finish(0)
    assert silent.rows()[0]["reason"] == "it did not tell bytes"


@pytest.mark.parametrize("kill_at", [0, 5])
def test_a_database_holds_the_same_study(tmp_path: Path, kill_at: int) -> None:
    """Optuna opens it by itself; a killed driver changes nothing, nor does one killed while a trial is made."""
    import optuna

    url = f"sqlite:///{tmp_path}/sweeps.db"
    undisturbed = played(tmp_path, "journal", 3)
    with pytest.raises(Killed):
        play(study_of(open_store(tmp_path / "s"), database=url), 3, kill_at)
    half = optuna.load_study(study_name="s", storage=url)
    if kill_at == 0:  # the trial is there, its labels are not
        half._storage.create_new_trial(half._study_id)
    resumed = study_of(open_store(tmp_path / "s"), database=url)
    play(resumed, 3)
    assert told(resumed) == told(undisturbed)
    assert len(optuna.load_study(study_name="s", storage=url).trials) == 3


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/nowhere/s.db", "oracel://x"):
        with pytest.raises(UserError, match="cannot be opened"):
            study_of(open_store(tmp_path), database=url)


def test_only_crashes_are_tried_again(tmp_path: Path) -> None:
    """The same trial, run and costs, on from where it was; twice asked is once done."""
    store = open_store(tmp_path)
    study = study_of(store)
    given = [study.ask() for _ in range(4)]
    study.report(0, 2, 1.0, frames=20, seconds=2.0)
    study.finish(0, "its process died")
    study.report(1, 2, float("nan"), frames=20, seconds=1.0)
    study.finish(2, "UserError: a setting is wrong", crashed=False)
    assert study.retry() == [0]
    assert study.retry() == []
    rows = study.rows()
    assert [row["state"] for row in rows] == ["preempted", "failed", "failed", "running"]
    assert (rows[0]["attempts"], rows[0]["run"], rows[0]["seconds"], rows[0]["step"]) == (2, given[0].run, 2.0, 2)
    again = study_of(store)
    play(again, 6)
    assert len(again) == 6
    assert again.rows()[0]["seconds"] == pytest.approx(2.8)
    assert again.rows()[0]["state"] in ("done", "pruned") and again.rows()[0]["reason"] == ""
    assert [row["state"] for row in again.rows()].count("failed") == 2
    assert store.table("trials")["run"].is_unique


def test_a_trial_nobody_runs_is_preempted(tmp_path: Path) -> None:
    """Released by its driver, or left by one that was killed, whose sweep is over."""
    store = open_store(tmp_path)
    study = study_of(store)
    (given,) = [study.ask()]
    assert store.table("trials")["state"].tolist() == ["running"]
    study.release()
    assert store.table("trials")["state"].tolist() == ["preempted"]
    study.take(given)
    tables.append(store, "runs", [{"run": "s", "kind": "sweep", "status": "failed"}], part="s")
    assert store.table("trials", where="state == 'preempted'")["trial"].tolist() == [0]


def test_a_search_begins_with_what_earlier_ones_saw(tmp_path: Path) -> None:
    earlier = played(tmp_path, "a", 12)
    rows = open_store(tmp_path / "a").table("trials").to_dict("records")
    study = study_of(open_store(tmp_path / "b"))
    narrow = {"good": Axis(choice=[True]), "extra": Axis(uniform=[0.0, 1.0])}
    assert study.observe(rows) == 12
    assert study.observe(rows) == 0
    good = [row for row in rows if row["good"]]
    assert study_of(open_store(tmp_path / "c"), space=narrow).observe(rows) == len(good)
    assert len(study) == 0 and study.best() == []
    play(study, 8)
    assert [row["trial"] for row in study.rows()] == list(range(8))
    best = earlier.rows()[earlier.best()[0].number]
    firsts = study.rows()[:3]
    # Where random search would start, this one knows the good half.
    assert sum(row["good"] for row in firsts) == 3
    assert max(row["objective"] for row in study.rows()) >= 0.95 * best["objective"]


def test_two_thousand_trials_are_read_in_no_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for sweep in range(20):
        rows = [
            {
                "sweep": f"s{sweep}",
                "trial": n,
                "run": f"{sweep}-{n}",
                "state": "done",
                "objective": n / 7,
                "lr": n * 1e-5,
            }
            for n in range(100)
        ]
        tables.append(store, "trials", rows, part=f"s{sweep}")
    store.table("trials")
    began = time.process_time()
    assert len(store.table("trials")) == 2000
    assert time.process_time() - began < 1
