"""A trial is a run that is scored at its checkpoints, and winners are trained again."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.jobs.sweep import command as job
from longtake.jobs.train import command as train
from longtake.training import checkpoints
from tests.jobs.sweep.toy import RETRIEVAL, sweep_of


def test_a_trial_is_a_run_that_is_scored_and_goes_on(place: Path) -> None:
    """Stopped at its second rung, then gone on with: the rung is judged again, the scores are there once."""
    from longtake.jobs.sweep.trial import run_trial

    sweep, store = sweep_of(place, RETRIEVAL)
    study = job.open_study(sweep, store)
    given = study.ask()
    heard: list[tuple[int, float]] = []

    def judge(step: int, numbers: dict[str, float]) -> bool:
        heard.append((step, numbers["objective"]))
        assert numbers["frames"] == 16 * step
        return len(heard) != 2

    run_trial((store, sweep), given, judge)
    (row,) = store.table("runs").to_dict("records")
    assert (row["kind"], row["status"], row["reason"]) == ("train", "stopped", "pruned at step 4")
    assert (row["sweep"], row["trial"], row["name"]) == (sweep.id, 0, "toys-000")
    assert checkpoints.newest(store, given.run) == 4
    run_trial((store, sweep), given, judge)
    assert [step for step, _ in heard] == [2, 4, 4, 6, 8]
    assert heard[1] == heard[2]
    assert store.table("runs")["status"].tolist() == ["done"]
    scores = store.table("scores")
    assert len(scores) == 4 * 2 * 3  # checkpoints x episodes x judged frames
    last = scores[(scores.checkpoint == 8) & (scores.distance > 3)]
    assert last["value"].mean() == pytest.approx(heard[-1][1])
    assert set(scores["split"]) == {"val"}
    assert len(store.table("steps")) == 8


def test_a_trial_is_the_training_that_its_config_says(place: Path) -> None:
    """Judged in a trial or run by `train`: the same weights."""
    from longtake.jobs.sweep.trial import run_trial

    sweep, store = sweep_of(place)
    given = job.open_study(sweep, store).ask()
    run_trial((store, sweep), given, lambda step, numbers: True)
    config = sweep.trial(given.labels, 0).model_copy(update={"workers": 0})
    plain = train.train(config, store)
    one, other = (store.read_bytes(f"{checkpoints.folder(run, 8)}/model.safetensors") for run in (given.run, plain))
    assert one == other


def test_a_trial_tells_its_costs(place: Path) -> None:
    """Bytes as the formula has them; a longer window carries more and takes no less."""
    from longtake.jobs.sweep.trial import run_trial
    from longtake.models.analysis.cost import Costs

    sweep, store = sweep_of(place, "against=[ms_per_frame, carried_bytes]", "pruning.method=none")
    study = job.open_study(sweep, store)
    given = study.ask()

    def judge(step: int, numbers: dict[str, float]) -> bool:
        costs = {name: numbers[name] for name in study.against}
        return study.report(given.number, step, numbers["objective"], frames=0, seconds=0, costs=costs)

    run_trial((store, sweep), given, judge)
    study.finish(given.number)
    (row,) = store.table("trials").to_dict("records")
    assert row["state"] == "done" and row["ms_per_frame"] > 0
    assert row["carried_bytes"] == Costs(sweep.trial(given.labels).model).carried(8)["total"]


def test_winners_train_from_seeds_that_the_search_did_not_see(place: Path) -> None:
    from longtake.jobs.sweep.winners import trainings

    sweep, store = sweep_of(place, RETRIEVAL, "winners={seeds: 2}")
    given = job.open_study(sweep, store).ask()
    trial, ours = sweep.trial(given.labels, 0), trainings(sweep, given)
    assert [config.seed for config in ours] == [trial.seed + 1, trial.seed + 2]
    assert all(config.model == trial.model and config.engine == trial.engine for config in ours)
    assert sweep.config.test_protocol is not None and sweep.config.test_protocol.split == "test"
