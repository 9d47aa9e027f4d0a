"""A run that was interrupted goes on: exactly, by its checkpoints, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.jobs.export import command as export
from longtake.jobs.train import command as train
from longtake.jobs.train.loop import train_loop
from longtake.storage.store import open_store
from longtake.training import checkpoints
from tests.jobs.train.toy import DyingContext, Killed, apart, config_of, run


def test_a_damaged_checkpoint_is_named_by_all_who_read_it(place: Path, trained: str, tmp_path: Path) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    store, where = open_store(tmp_path / "store"), f"{checkpoints.folder(trained, 2)}/model.safetensors"
    weights = store.read_bytes(where)
    Path(store.path(where)).write_bytes(weights[:-64] + bytes(64))
    longer = config_of(place, "steps=4", "seed=11")
    for read in (
        lambda: export.main(trained, str(tmp_path / "out"), None, store.uri),
        lambda: train.check(config_of(place, f"init.run={trained}"), store),
        lambda: train.train(longer, store, resume=trained, fork=True),
    ):
        with pytest.raises(UserError, match=f"{where}: damaged, its SHA-256"):
            read()
    assert not (tmp_path / "out").exists()


def test_a_resume_that_finds_nothing_where_there_was_something_stops(place: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    shutil.copytree(place / "store/datasets", tmp_path / "store/datasets")
    config = config_of(place, "steps=4", "seed=11", "checkpoint_every=2")
    made = run(store, "lost", config.model_copy(update={"steps": 4}))
    assert made
    shutil.rmtree(store.path("runs/lost"))
    with pytest.raises(UserError, match="run lost: it has come to step 4, by the table `steps`"):
        train._train(config, store, "lost")
    assert not store.exists("runs/lost/checkpoints")


def test_a_fork_goes_on_as_another_run(place: Path, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    store, config = open_store(place / "store"), config_of(place, "steps=4", "seed=11")
    with pytest.raises(UserError, match=r"steps: 2 then, 4 now\n.*--fork"):
        train.train(config, store, resume=trained)
    forked = train.train(config, store, resume=trained, fork=True)
    assert f"forking run {trained} at step 2: steps: 2 then, 4 now" in capsys.readouterr().out
    row = store.table("runs").set_index("run").loc[forked]
    assert (row.forked_from, row.status) == (f"{trained}@2", "done")
    assert list(store.table("steps", where=f"run == '{forked}'").step) == [2, 3]
    assert checkpoints.complete(store, trained) == [2]
    for overrides, told in (
        (["steps=2"], "fork: steps: 2, but run .* has come to step 2"),
        (["steps=4", "model.dim=32"], "fork: its weights do not fit this model: model.dim: 16 then, 32 now"),
    ):
        with pytest.raises(UserError, match=told):
            train.train(config_of(place, *overrides), store, resume=trained, fork=True)


def test_a_run_goes_on_with_other_workers_and_watchers(place: Path) -> None:
    store = open_store(place / "store")
    train.start_record(config_of(place, "seed=14", "workers=2"), store, "moved")
    assert train.train(config_of(place, "seed=14", "watch=[tensorboard]"), store, resume="moved") == "moved"
    assert store.exists("runs/moved/watch/tensorboard")
    row = store.table("runs").set_index("run").loc["moved"]
    assert (row.status, row.sessions) == ("done", 2) and "workers: 0" in row.config
    with pytest.raises(UserError, match="seed: 14 then, 15 now"):
        train.train(config_of(place, "seed=15", "workers=2"), store, resume="moved")


def test_a_run_killed_before_its_first_checkpoint_begins_again(place: Path) -> None:
    store, config = open_store(place / "store"), config_of(place, "seed=12")
    train.start_record(config, store, "killed-early")
    assert train.train(config, store, reuse=True) == "killed-early"
    assert store.table("runs").set_index("run").status["killed-early"] == "done"


def test_a_killed_run_ends_with_the_same_weights_and_rows(place: Path) -> None:
    store, config = open_store(place / "store"), config_of(place)
    straight = run(store, "straight", config)
    with pytest.raises(Killed):
        train_loop(DyingContext(store, "killed", keep=9), config)
    assert apart(run(store, "killed", config), straight) == 0
    steps = store.table("steps").set_index(["run", "step"]).loss
    assert steps["killed"].to_dict() == steps["straight"].to_dict()
    assert len(steps["killed"]) == config.steps
    frames = {name: checkpoints.manifest(store, name, 6)["metrics"]["frames"] for name in ("killed", "straight")}
    assert frames == {"killed": 96, "straight": 96}


def test_resuming_another_config_is_refused_by_field(place: Path) -> None:
    store = open_store(place / "store")
    name = train.train(config_of(place, "steps=2"), store)
    with pytest.raises(UserError, match=r"steps: 2 then, 3 now"):
        train.train(config_of(place, "steps=3"), store, resume=name)


def test_a_finished_run_is_reused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, config = open_store(place / "store"), config_of(place, "steps=2", "seed=5")
    name = train.train(config, store, reuse=True)
    assert train.train(config, store, reuse=True) == name
    assert "reused" in capsys.readouterr().out
    assert store.table("runs").set_index("run").status[name] == "done"


def test_the_run_alone_is_enough_to_go_on(place: Path, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(place / "store")
    train.main(None, ["keep=7"], uri, False, resume=trained)
    assert f"run {trained} has done this already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"engine.lr: 0.01 then, 0.5 now\n.*--fork"):
        train.main(None, ["engine.lr=0.5"], uri, False, resume=trained)
    with pytest.raises(UserError, match="unknown run 'nobody'"):
        train.main(None, [], uri, False, resume="nobody")
    with pytest.raises(UserError, match="Missing argument 'CONFIG'.*longtake configs"):
        train.main(None, [], uri, False)


def test_a_resume_is_looked_over_before_it_begins(
    place: Path, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(place / "store")
    train.main(None, [], uri, True, resume=trained)
    assert f"resume    run {trained} from step 2" in capsys.readouterr().out
    train.main(None, ["steps=4"], uri, True, resume=trained, fork=True, brief=True)
    told = capsys.readouterr().out
    assert f"resume    a fork of run {trained} from step 2; changed: steps: 2 then, 4 now" in told
    assert "lr: 0.01" in told and "weight_decay" not in told
    for overrides, fork, line in (
        (["steps=4"], False, "steps: 2 then, 4 now"),
        ([], True, "fork: steps: 2, but run .* has come to step 2"),
    ):
        with pytest.raises(UserError, match=line):
            train.main(None, overrides, uri, True, resume=trained, fork=fork)


def test_no_fork_is_advised_that_would_be_refused(place: Path, trained: str) -> None:
    uri = str(place / "store")
    with pytest.raises(UserError, match="engine.backend: torch then, deepspeed now") as caught:
        train.main(None, ["engine.backend=deepspeed"], uri, True, resume=trained)
    assert "--fork" not in str(caught.value)
    with pytest.raises(UserError, match="fork: engine.backend: torch then, deepspeed now: the optimizer's state"):
        train.main(None, ["engine.backend=deepspeed", "steps=4"], uri, True, resume=trained, fork=True)
