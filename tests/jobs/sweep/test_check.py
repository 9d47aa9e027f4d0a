"""What a sweep refuses, points out and counts before its first trial."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from longtake.config import load
from longtake.errors import UserError
from longtake.jobs.sweep import check as sweep_check
from longtake.jobs.sweep import command as job
from longtake.jobs.sweep.config import CONFIGS, SweepConfig, new
from longtake.tables import table as tables
from longtake.tuning.space import corners
from tests.jobs.sweep.toy import RETRIEVAL, ROOT, refused, sweep_of


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
