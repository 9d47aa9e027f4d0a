"""`longtake sweep` on a toy dataset: what is refused, what a trial leaves, and that kills lose nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from longtake.config import load
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.jobs.sweep import check as sweep_check
from longtake.jobs.sweep import command as job
from longtake.jobs.sweep.config import CONFIGS, Sweep, SweepConfig, new
from longtake.jobs.train import command as train
from longtake.storage import lease
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.training import checkpoints, progress_file
from longtake.tuning.space import corners

ROOT = Path(__file__).parents[3]

TRAIN = """
name: toy
steps: 8
workers: 1
checkpoint_every: 2
data: {dataset: mazes, frames_per_step: 16, curriculum: [{frames: 8}], base_segment: 4}
model:
  height: 16
  width: 16
  dim: 16
  heads: 2
  window: 2
  d_state: 4
  headdim: 8
  layers: [{mixer: ssm, spatial_block: [1, 1]}]
engine: {backend: torch, warmup: 1, decay: 0.25}
validation: {every: 2, clips: 2}
"""
SWEEP = """
name: toys
train: %s
space:
  engine.lr: {choice: {good: 1.0e-2, bad: 1.0e-9}}
  model.window: {integer: [1, 3]}
  model.d_state: {choice: [4, 8]}
trials: 8
sampling: {startup: 4}
pruning: {first: 2}
objective: {column: val_loss}
"""
RETRIEVAL = (
    "objective={protocol: {task: retrieval, context: 4, horizon: 4, episodes: 2, split: val, "
    "sampler: {steps: 1}, metrics: [psnr]}}"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a store and the two configs."""
    store = open_store(tmp_path / "store")
    write_dataset(store)
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "sweep.yaml").write_text(SWEEP % (tmp_path / "train.yaml"))
    return tmp_path


def write_dataset(store: Store) -> None:
    draw = np.random.default_rng(0)
    about = {"fps": 10.0, "action_space": {"turn": "degrees"}, "pose": ["x", "y", "yaw"]}
    writer = DatasetWriter(store, "mazes", recipe={}, **about, test=0.2)
    episodes = []
    for _ in range(40):
        walk = np.cumsum(draw.normal(0, 0.3, (16, 3)), 0).astype(np.float32)
        shade = np.clip(128 + 60 * walk[:, None, None, :] + draw.normal(0, 20, (16, 16, 16, 3)), 0, 255)
        episodes.append(Episode(shade.astype(np.uint8), draw.normal(size=(16, 2)).astype(np.float32), walk))
    writer.write_shard(0, episodes)
    writer.finalize(1)


def sweep_of(place: Path, *overrides: str) -> tuple[Sweep, Store]:
    store = open_store(place / "store")
    config = load(SweepConfig, place / "sweep.yaml", list(overrides), search=CONFIGS)
    return sweep_check.check(new(config), store), store


def refused(place: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        sweep_of(place, *overrides)
    return "\n".join(caught.value.lines)


# --- what is refused ---------------------------------------------------------------------------------------


def test_shipped_configs_are_valid(tmp_path: Path) -> None:
    (_, example, _) = (ROOT / "docs" / "sweeps.md").read_text().split("```")
    (tmp_path / "example.yaml").write_text(example.removeprefix("yaml"))
    for path in (*sorted(CONFIGS.glob("*.yaml")), tmp_path / "example.yaml"):
        sweep = new(load(SweepConfig, path, search=CONFIGS))
        for labels in corners(sweep.config.space):
            sweep.trial(labels)
        assert sweep_check.notes(sweep) == []


def test_every_corner_is_checked_before_the_first_trial(place: Path) -> None:
    blocks = (
        "space={model.layers: {choice: {ok: [{mixer: ssm}], odd: [{mixer: ssm, spatial_block: [3, 1]}]}},"
        " data.curriculum: {choice: {ok: [{frames: 8}], odd: [{frames: 6}]}}}"
    )
    told = refused(place, blocks)
    assert "layers.0.spatial_block: [3, 1] does not divide" in told
    assert "data.frames_per_step: 16 frames are not the same whole number of clips of 6 frames" in told
    assert "(for one at model.layers=ok, data.curriculum=odd)" in told
    assert not (place / "store" / "sweeps").exists()


def test_fields_are_named_with_their_neighbours(place: Path) -> None:
    told = refused(place, "space={model.windo: {choice: [1, 2]}}")
    assert "model.windo: unknown key (did you mean window?)" in told


def test_objectives_that_cannot_be_measured_are_refused(place: Path) -> None:
    assert "val_loss is measured every 3 steps" in refused(place, "change={validation: {every: 3}}")
    told = refused(place, "objective={column: val_los}")
    assert "unknown column of steps 'val_los' (did you mean val_loss?)" in told and "state_std.layers.0.ssm" in told
    assert "unknown column of steps 'val_loss_short'" in refused(place, "objective={column: val_loss_short}")
    assert "pruning.first: 8 is not before the end" in refused(place, "pruning.first=8")
    assert "no frame of the protocol lies beyond 3" in refused(place, RETRIEVAL.replace("horizon: 4", "horizon: 2"))
    assert "99 asked for" in refused(place, RETRIEVAL.replace("episodes: 2", "episodes: 99"))
    assert "may see the val split only" in refused(place, RETRIEVAL.replace("split: val", "split: test"))


@pytest.mark.parametrize("where", ["me:secret@host/db", "me@host/db?password=secret"])
def test_a_password_is_not_made_part_of_a_config(place: Path, where: str) -> None:
    told = refused(place, f"database=postgresql://{where}")
    assert "database: without its password" in told and "secret" not in told


def test_without_an_objective_it_is_a_cheap_memory_score(place: Path) -> None:
    """Half the longest clip walked back, of the val split, beyond what windows reach; or any column of steps."""
    text = (place / "sweep.yaml").read_text()
    (place / "sweep.yaml").write_text(text.replace("objective: {column: val_loss}", ""))
    objective = sweep_of(place, "objective={metric: ssim}")[0].config.objective
    assert objective.protocol is not None and objective.name == "retrieval ssim" and objective.beyond == 3
    assert (objective.protocol.context, objective.protocol.horizon, objective.protocol.split) == (4, 4, "val")
    rank = sweep_of(place, "objective={column: state_rank.layers.0.ssm, better: higher}")[0].config.objective
    assert rank.direction == "maximize" and rank.protocol is None
    with pytest.raises(UserError, match="a metric knows which way is good"):
        sweep_of(place, "objective={better: higher}")


def test_a_search_knows_which_way_its_metric_points(place: Path) -> None:
    def objective(metric: str, metrics: str) -> str:
        return RETRIEVAL.replace("metrics: [psnr]}", f"metrics: [{metrics}]}}, metric: {metric}")

    for metric, direction in (("psnr", "maximize"), ("ssim", "maximize"), ("lpips_alex", "minimize")):
        config = load(SweepConfig, place / "sweep.yaml", [objective(metric, metric)], search=CONFIGS)
        assert config.objective.direction == direction
    assert "sharpness is best at 0" in refused(place, objective("sharpness", "sharpness"))
    assert "fvd needs the clips of a whole evaluation" in refused(place, objective("psnr", "psnr, fvd"))
    assert "lpips_alex: frames are 16x16, at least 31" in refused(place, objective("lpips_alex", "lpips_alex"))
    assert "did you mean lpips_vgg?" in refused(place, objective("lpips_vg", "lpips_vgg"))


def test_the_same_frames_are_scored_at_every_window(place: Path) -> None:
    """Beyond what the widest of them reaches, layer upon layer."""
    assert sweep_of(place, RETRIEVAL)[0].config.objective.beyond == 3
    assert sweep_of(place, RETRIEVAL, "change={model: {depth: 2}}")[0].config.objective.beyond == 5


def test_too_many_trials_at_once_are_refused_with_the_arithmetic(place: Path) -> None:
    sweep, store = sweep_of(place, "at_once=200")
    began = time.process_time()
    with pytest.raises(UserError, match=r"200 trials at once x 1 workers x .* = 200 CPUs, .*: lower at_once to"):
        job.run(sweep, store)
    assert time.process_time() - began < 10
    assert store.table("runs").empty and not store.exists("sweeps")
    assert "too much   200 trials" in sweep_check.describe(sweep, store)


def test_a_search_that_cannot_be_is_refused(place: Path) -> None:
    windw = "space={model.window: {choice: [1, 2]}, model.d_state: {choice: [2, 4], when: {model.windw: 2}}}"
    assert "unknown axis above it 'model.windw' (did you mean model.window?)" in refused(place, windw)
    assert "a grid has no place for the range engine.lr" in refused(
        place, "space={engine.lr: {uniform: [0.1, 0.2]}}", "sampling.method=grid"
    )
    told = refused(place, "trials=13")
    assert "trials: 13, but the space has 12 points, and none is tried twice: set trials=12" in told
    assert "nsga2 is for several objectives" in refused(place, "sampling.method=nsga2")
    assert "winners.protocol: is required, for val_loss" in refused(place, "winners={}")
    assert "winners are scored on test" in refused(
        place, "winners={protocol: {task: retrieval, context: 4, horizon: 4, split: val}}"
    )
    many = "winners={protocol: {task: retrieval, context: 4, horizon: 4, episodes: 99}}"
    told = refused(place, many)
    assert "winners.protocol: " in told and "99 asked for" in told


def test_branches_of_the_curriculum_and_the_state_are_configs(place: Path) -> None:
    """A ramp's step only with a ramp; widths of a nested state only where the state is that wide."""
    space = (
        "space={data.curriculum: {choice: {flat: [{frames: 8}], ramp: [{until: 4, frames: 4}, {frames: 8}]}},"
        " data.curriculum.0.until: {integer: [2, 6], when: {data.curriculum: ramp}},"
        " model.d_state: {choice: [4, 8]},"
        " memory.nested: {choice: {none: [], half: [4, 8]}, when: {model.d_state: 8}}}"
    )
    sweep, store = sweep_of(place, space)
    ramp = sweep.trial(
        {"data.curriculum": "ramp", "data.curriculum.0.until": 3, "model.d_state": 8, "memory.nested": "half"}
    )
    assert [stage.until for stage in ramp.data.curriculum] == [3, None]
    assert ramp.memory.nested == [4, 8]
    flat = sweep.trial({"data.curriculum": "flat", "model.d_state": 4})
    assert len(flat.data.curriculum) == 1 and flat.memory.nested == []
    told = sweep_check.describe(sweep, store)
    assert "points     18" in told and "data.curriculum=ramp, data.curriculum.0.until=6, model.d_state=4" in told
    assert "only when data.curriculum is ramp" in told
    assert "memory.nested: 8 dimensions, but model.d_state is 4" in refused(
        place, space.replace(", when: {model.d_state: 8}", "")
    )


def test_axes_that_cannot_change_results_are_pointed_out(place: Path) -> None:
    blocks = "space={temporal_block: {choice: [2, 4]}, model.window: {choice: [1, 2]}}"
    (line,) = sweep_check.notes(sweep_of(place, "trials=4", blocks)[0])
    assert line.startswith("space: temporal_block cannot change the results: the memory is carried exactly")
    assert f"note       {line}" in sweep_check.describe(*sweep_of(place, "trials=4", blocks))
    for change in ("bptt_blocks: 1", "memory: {carry_width: 2}", "memory: {regularise: 0.1}"):
        assert sweep_check.notes(sweep_of(place, "trials=4", blocks, f"change={{{change}}}")[0]) == []
    for change in ("bptt_blocks: 4", "memory: {overlap: 1}"):
        assert len(sweep_check.notes(sweep_of(place, "trials=4", blocks, f"change={{{change}}}")[0])) == 1
    local = "space={model.d_state: {choice: [4, 8]}, model.window: {choice: [1, 2]}}"
    none = "change={model: {layers: [{mixer: none, window: 2}]}}"
    assert [line.split()[1] for line in sweep_check.notes(sweep_of(place, "trials=4", local, none)[0])] == [
        "model.d_state",
        "model.window",
    ]


def test_rungs_in_a_falling_rate_are_pointed_out(place: Path) -> None:
    assert sweep_check.notes(sweep_of(place)[0]) == []
    (line,) = sweep_check.notes(sweep_of(place, "change={engine: {decay: 1.0}}")[0])
    assert line.startswith("pruning: rungs at 2, 4 judge trials whose learning rate falls from step 1 on")
    assert "set change.engine.decay=0.5" in line
    for fair in ("change={engine: {decay: 0.5}}", "change={engine: {decay: 1.0, final_lr: 1.0}}"):
        assert sweep_check.notes(sweep_of(place, fair)[0]) == []


def test_a_dry_run_tells_the_time_by_earlier_trials(place: Path) -> None:
    sweep, store = sweep_of(place)
    assert "no sweep of toys in this store yet" in sweep_check.describe(sweep, store)
    tables.append(store, "runs", [{"run": "old", "kind": "sweep", "name": "toys", "status": "done"}], part="old")
    rows = [{"sweep": "old", "trial": 0, "run": "x", "state": "done", "frames": 64, "seconds": 32.0}]
    tables.append(store, "trials", rows, part="old")
    # 8 trials x 8 steps x 16 frames, of which rungs at 2 and 4 leave 2 + 1 + 1 steps of 8; at 2 frames/s.
    assert "about 512 frames (50% of the most for trials); about 4 min at 2 frames/s" in sweep_check.describe(
        sweep, store
    )


def test_earlier_sweeps_must_have_meant_the_same(place: Path) -> None:
    sweep, store = sweep_of(place)
    with job._record(sweep, store):
        pass
    assert f"warm_start: unknown run 'old'; there are: {sweep.id}, latest, " in refused(place, "warm_start=[old]")
    job.open_study(sweep, store).ask()
    named, _ = sweep_of(place, f"warm_start=[{sweep.id}, {sweep.config.name}, latest]")
    assert job.check(named, store).config.warm_start == [sweep.id]
    told = refused(place, f"warm_start=[{sweep.id}]", "change={steps: 6}", "against=[carried_bytes]")
    assert "means something else: change.steps: 8 then, 6 now" in told
    assert "against: [] then, ['carried_bytes'] now" in told


# --- a trial, in this process -------------------------------------------------------------------------------


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


# --- whole sweeps ------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def command(store: Path | str, *arguments: str) -> list[str]:
    code = "from longtake.jobs.cli import main; main()"
    return [sys.executable, "-c", code, "sweep", *arguments, "--store", str(store)]


def sweep_to_the_end(store: Path | str, *arguments: str) -> str:
    done = subprocess.run(
        command(store, *arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(place: Path) -> pd.DataFrame:
    return open_store(place / "store").table("trials")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_two_sweeps_of_one_seed_have_one_winner(place: Path, bucket: str) -> None:
    """At concurrency 1, on a folder and on S3: the same trials, states, best config; three of eight are pruned."""
    write_dataset(open_store(bucket))
    tables, best = [], []
    for uri in (str(place / "store"), bucket):
        assert "best: trial" in sweep_to_the_end(uri, str(place / "sweep.yaml"))
        table = open_store(uri).table("trials")
        assert (table["seconds"] > 0).all()
        tables.append(
            table[["trial", "state", "objective", "step", "frames", "engine.lr", "model.window", "model.d_state"]]
        )
        (sweep,) = set(table["sweep"])
        text = open_store(uri).read_bytes(f"sweeps/{sweep}/best.yaml").decode()
        best.append("\n".join(line for line in text.splitlines() if line[0] != "#"))
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 8 and (tables[0]["state"] == "pruned").sum() >= 3
    assert best[0] == best[1]
    done = tables[0][tables[0]["state"] == "done"]
    lr = {"good": 1.0e-2, "bad": 1.0e-9}[done.loc[done["objective"].idxmin(), "engine.lr"]]
    assert yaml.safe_load(best[0])["engine"]["lr"] == lr
    (place / "best.yaml").write_text(best[0])
    train.main(str(place / "best.yaml"), ["workers=0", "steps=2"], str(place / "store"), dry_run=True)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_sweep_killed_at_random_moments_goes_on(place: Path) -> None:
    """kill -9 of the driver, twice: nothing that ended runs again, nothing is lost, nothing is there twice."""
    moments, kept = random.Random(16), pd.DataFrame()
    wide = "space={engine.lr: {loguniform: [1.0e-5, 1.0e-2]}, model.window: {integer: [1, 3]}}"
    asked = [str(place / "sweep.yaml"), "--set", wide, "--set", "trials=16", "--set", "at_once=2"]
    for _ in range(2):
        killed_after(place, asked, moments.randint(20, 60), moments.uniform(0, 1))
        now = ended(place)
        kept = pd.concat([kept, now.drop(index=kept.index)])
        (sweep,) = set(now["sweep"])
        asked = ["--resume", sweep]
    assert 1 <= len(kept) < 16
    sweep_to_the_end(place / "store", *asked)
    after = ended(place)
    pd.testing.assert_frame_equal(after.loc[kept.index], kept)
    assert after.index.tolist() == list(range(16)) and after["run"].is_unique
    assert set(after["state"]) == {"done", "pruned"}
    study = told_by_optuna(place, sweep)
    assert [{"COMPLETE": "done", "PRUNED": "pruned"}[one.state.name] for one in study] == after["state"].tolist()
    runs = open_store(place / "store").table("runs").set_index("run")
    assert sorted(runs.index[runs["kind"] == "train"]) == sorted(after["run"])
    assert runs.loc[sweep, "status"] == "done"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_sweep_outlives_its_head(place: Path) -> None:
    """kill -9 of Ray's head, its GCS and its raylet: the driver ends, and a resume goes on from what had been done."""
    asked = [str(place / "sweep.yaml"), "--set", "trials=5"]
    # Ray looks for a lost head for a minute.
    with driving(place, asked, {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}) as driver:
        wait_for(driver, lambda: of_trials(place, "state").isin(["done", "pruned"]).sum() >= 2)
        head = [each for each in children(driver) if name_of(each).endswith(("gcs_server", "raylet"))]
        assert len(head) == 2
        for process in head:
            process.kill()
        assert driver.wait(240) != 0
    kept = ended(place)
    assert 2 <= len(kept) < 5
    (sweep,) = set(kept["sweep"])
    sweep_to_the_end(place / "store", "--resume", sweep)
    after = ended(place)
    pd.testing.assert_frame_equal(after.loc[kept.index], kept)
    assert after.index.tolist() == list(range(5)) and after["run"].is_unique


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_trial_outlives_one_of_its_workers(place: Path) -> None:
    """Trials of two workers each, one of which is killed -9: its trial goes on from its checkpoint, the sweep to its
    end."""
    long = "change={workers: 2, steps: 96, checkpoint_every: 4, validation: {every: 4, clips: 2}}"
    asked = [str(place / "sweep.yaml"), *(word for value in (long, "trials=2", "pruning.method=none")
                                          for word in ("--set", value))]  # fmt: skip
    with driving(place, asked) as driver:
        wait_for(driver, lambda: (of_trials(place, "step") >= 8).any())
        workers = [each for each in children(driver) if name_of(each).startswith("ray::RayTrainWorker")]
        assert len(workers) == 2
        workers[-1].kill()
        assert driver.wait(240) == 0
    table, store = trials(place), open_store(place / "store")
    assert table["state"].tolist() == ["done", "done"] and (table["step"] == 96).all()
    told = [progress_file.read(store, run) for run in table["run"]]
    assert [each.restarts for each in told if each] == [1, 0]
    steps = store.table("steps").groupby("run")["step"]
    assert all(sorted(steps.get_group(run)) == list(range(96)) for run in table["run"])


@contextlib.contextmanager
def driving(place: Path, arguments: list[str], more: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process of its own, which is gone at the end, with all that it started."""
    driver = subprocess.Popen(command(place / "store", *arguments), cwd=ROOT, env=environment() | (more or {}))
    started: list[psutil.Process] = []
    try:
        yield driver
    finally:
        if driver.poll() is None:
            started = children(driver)
            driver.kill()
        driver.wait()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def children(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes below a driver, by id."""
    return sorted(psutil.Process(driver.pid).children(recursive=True), key=lambda process: process.pid)


def name_of(process: psutil.Process) -> str:
    """The first word of its command; none if it has just ended."""
    with contextlib.suppress(psutil.Error):
        return next(iter(process.cmdline()), "")
    return ""


def of_trials(place: Path, column: str) -> pd.Series[Any]:
    """A column of the trials that have begun."""
    table = trials(place)
    return table[column] if len(table) else pd.Series([], dtype=object)


def wait_for(driver: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the sweep has ended before that"
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def ended(place: Path) -> pd.DataFrame:
    """The trials that have ended, by number, as the table and Optuna agree, with how often their runs were begun."""
    table, store = trials(place).drop(columns="event_time"), open_store(place / "store")
    (sweep,) = set(table["sweep"])
    over = [number for number, trial in enumerate(told_by_optuna(place, sweep)) if trial.state.is_finished()]
    rows = table[table["state"].isin(["done", "pruned"])].set_index("trial")
    # The study is written first: a kill may come between the two.
    assert set(rows.index) <= set(over) and len(over) - len(rows) <= 1
    return rows.join(store.table("runs").set_index("run")["sessions"], on="run")


def killed_after(place: Path, arguments: list[str], lines: int, seconds: float) -> None:
    """Start a sweep, and kill -9 its driver so long after so many lines have come to the journal."""
    wanted = journal_lines(place) + lines
    driver = subprocess.Popen(command(place / "store", *arguments), cwd=ROOT, env=environment())
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and journal_lines(place) < wanted:
            time.sleep(0.05)
        time.sleep(seconds)
        assert driver.poll() is None, "the sweep has ended before it could be killed"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()


def journal_lines(place: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in place.glob("store/sweeps/*/study.journal"))


def told_by_optuna(place: Path, sweep: str) -> list[optuna.trial.FrozenTrial]:
    """The study as Optuna itself reads it."""
    backend = JournalFileBackend(str(place / f"store/sweeps/{sweep}/study.journal"))
    return optuna.load_study(study_name=sweep, storage=optuna.storages.JournalStorage(backend)).trials


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(500)
def test_a_sweep_with_all_of_it(place: Path) -> None:
    """Costs, a database, a crash that is tried again, and the winner on test: scored once, however often resumed."""
    url = f"sqlite:///{place}/sweeps.db"
    more = ["trials=4", "against=[carried_bytes]", f"database={url}", "winners={seeds: 2}", RETRIEVAL]
    told = sweep_to_the_end(place / "store", str(place / "sweep.yaml"), *(x for each in more for x in ("--set", each)))
    assert "winner: trial" in told and "over 2 fresh seeds" in told
    table, store = trials(place), open_store(place / "store")
    assert len(table) == 4 and (table["carried_bytes"] > 0).all()
    scores = store.table("scores", where="split == 'test' and system == 'toys'")
    assert scores["run"].nunique() == 2
    (sweep,) = set(table["sweep"])
    again = sweep_to_the_end(place / "store", "--resume", sweep, "--retry-failed", "--set", "trials=5")
    assert "tried again: none, for none crashed" in again
    assert len(trials(place)) == 5
    assert store.table("runs", where="kind == 'train'")["run"].nunique() <= 5 + 4
    unchanged = store.table("scores", where="split == 'test' and system == 'toys'")
    kept = unchanged[unchanged["run"].isin(scores["run"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, scores)


def test_a_sweep_that_runs_is_not_resumed_and_keeps_its_settings(place: Path) -> None:
    sweep, store = sweep_of(place)
    job._record(sweep, store).finish()
    with (
        lease.of_sweep(store, sweep.id),
        pytest.raises(UserError, match=f"sweep {sweep.id} is held by .* end what holds"),
    ):
        job.run(job.earlier(store, sweep.id, []), store)
    with pytest.raises(UserError, match="sampling.seed: 0 then, 1 now; only trials, at_once and winners may change"):
        job.earlier(store, sweep.id, ["sampling.seed=1"])
    assert job.earlier(store, sweep.id, ["trials=20"]).config.trials == 20
    assert job.earlier(store, "latest", []).id == job.earlier(store, sweep.config.name, []).id == sweep.id
    with pytest.raises(UserError, match="unknown run 'nothing'"):
        job.earlier(store, "nothing", [])
