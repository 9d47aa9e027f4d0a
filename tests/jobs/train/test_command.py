"""`longtake train` on a toy dataset, in this process: what a run learns, tells, costs, and what is refused up front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.errors import UserError
from longtake.jobs.train import command as train
from longtake.jobs.train import memory_check
from longtake.jobs.train import plan as train_plan
from longtake.jobs.train.loss import TrainingLoss
from longtake.jobs.train.world_model import Edge
from longtake.models.checkpoint import load_model
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel
from longtake.storage.store import open_store
from longtake.streaming.clips import load_clips
from longtake.streaming.loader import rank_slice
from longtake.training import checkpoints
from longtake.training.engine_config import EngineConfig
from tests.jobs.train.toy import apart, config_of, run


def test_a_mixture_trains_and_tells_what_it_drew(place: Path) -> None:
    store = open_store(place / "store")
    mixed = config_of(
        place,
        "data.dataset={mazes: 1, blind: 3}",
        "data.clip=forward",
        "model.conditions=actions",
        "model.action_dim=2",
    )
    train.check(mixed, store)
    told = train.describe(mixed, store)
    assert "mazes: 25.0% of the clips" in told and "blind: 75.0% of the clips" in told
    run(store, "mixed", mixed)
    steps = store.table("steps", where="run == 'mixed'")
    assert steps["drawn.mazes"].mean() == 0.25 and steps["replaced"].max() == 0
    with pytest.raises(UserError, match="set model.action_dim=4"):
        train.check(config_of(place, "model.conditions=both", "model.action_dim=2", "data.stride=2"), store)
    run(store, "stride", config_of(place, "data.stride=2", "data.random_start=true", "data.frames_per_step=8"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["{precision: autocast}", "{backend: deepspeed, zero: 3, precision: bf16}"])
def test_less_precision_learns_the_same(place: Path, engine: str) -> None:
    store, name = open_store(place / "store"), f"less-{len(engine)}"
    run(store, "full", config_of(place))
    weights = run(store, name, config_of(place, f"engine={engine}", "engine.warmup=1", "engine.lr=1e-2"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    losses = store.table("steps").groupby("run").val_loss.last()
    assert losses[name] == pytest.approx(losses["full"], rel=5e-3)
    assert losses[name] != losses["full"]


def test_a_checkpoint_is_a_model_by_itself(place: Path) -> None:
    store, config = open_store(place / "store"), config_of(place)
    weights = run(store, "alone", config)
    with checkpoints.opened(store, "alone", config.steps) as folder:
        model = load_model(folder)
    assert model.config == config.model
    assert apart(dict(model.state_dict()), weights) == 0


def test_a_model_that_cannot_fit_is_refused_with_the_arithmetic(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = memory_check.Clips(3, 64, 1e9)
    told = memory_check.too_large(10**9, EngineConfig(zero=1), 2, 2, 20 * 2**30, "this machine", clips)
    assert told.startswith("memory: 2 of 2 workers x (1000.0 M parameters x (4 parameters + 4 gradients + 6 optimizer)")
    assert "+ 3 clips x 1000 MB for 64 frames) = 31.7 GiB at the least, this machine has 20.0 GiB" in told
    assert "take a smaller model" in told
    assert not memory_check.too_large(10**8, EngineConfig(zero=1), 2, 2, 20 * 2**30, "this machine", clips)
    many = memory_check.Clips(12, 64, 1e9)
    assert "recompute=true" in memory_check.too_large(10**8, EngineConfig(zero=1), 2, 2, 20 * 2**30, "here", many)
    assert memory_check.per_parameter(EngineConfig(zero=3, precision="bf16"), 4) == {
        "parameters": 0.5,
        "gradients": 1.0,
        "optimizer": 3.0,
    }
    monkeypatch.setattr(memory_check.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(memory_check, "_card_bytes", lambda: 0)
    store = open_store(place / "store")
    before = len(store.table("runs"))
    with pytest.raises(UserError, match=r"memory: 1 of 1 workers x \(0.0 M parameters x .* this machine has 0.0 GiB"):
        train.train(config_of(place, "seed=13"), store)
    assert len(store.table("runs")) == before


def test_the_stage_that_keeps_most_is_counted(place: Path) -> None:
    whole = memory_check.heaviest(config_of(place), 1)
    assert (whole.count, whole.frames) == (2, 8)
    growing = ["data.curriculum=[{until: 2, frames: 4}, {frames: 8}]", "temporal_block=2", "bptt_blocks=1"]
    rank_slice = memory_check.heaviest(config_of(place, *growing), 1)
    assert (rank_slice.count, rank_slice.frames) == (4, 2) and rank_slice.each < whole.each
    assert memory_check.heaviest(config_of(place, "recompute=true"), 1).each < whole.each


def test_a_run_tells_what_it_cost_and_its_loss_at_both_lengths(place: Path) -> None:
    store = open_store(place / "store")
    stages = "data.curriculum=[{until: 2, frames: 4}, {frames: 8}]"
    name = train.train(config_of(place, stages, "steps=4", "validation.every=2", "seed=12"), store)
    steps = store.table("steps", where=f"run == '{name}'")
    short = steps["val_loss.4"]
    assert list(short.notna()) == list(steps.val_loss.notna()) == [False, True, False, True]
    assert (short != steps.val_loss)[steps.val_loss.notna()].all()
    assert (steps.state_drift.dropna() > -1).all() and len(steps.state_drift.dropna()) == 2
    row = store.table("runs").set_index("run").loc[name]
    assert row.frames == 4 * 16
    assert row.worker_s == pytest.approx(steps.step_s.sum())
    clips = store.dataset("mazes")
    by_then = checkpoints.manifest(store, name, 4)["metrics"]
    assert (by_then["frames"], by_then["bytes_read"]) == (row.frames, row.bytes_read)
    assert by_then["worker_s"] == pytest.approx(row.worker_s)
    assert 0 < row.bytes_read == steps.bytes_read.sum() < 4 * clips.manifest.bytes


def gradients(place: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Those of one batch, for a model with every branch open."""
    store, config = open_store(place / "store"), config_of(place, *overrides)
    torch.manual_seed(0)
    model = WorldModel(config.model)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    data = store.dataset("mazes")
    clips = load_clips(data, train_plan.build_plan(config, data, "train").batch(0))
    for part in TrainingLoss(config, model, model).losses(Edge(config, data, PIXELS, "cpu").batch(clips), 0):
        part.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_null_context_is_a_stream_that_begins_after_the_prefix(place: Path) -> None:
    """Its loss knows nothing of the frames left out, and its levels are those of a stream without a clean part."""
    config = config_of(place, "data.clip=revisit", "diffusion.null_context=1.0", "diffusion.clean_prefix=1.0")
    model = WorldModel(config.model)
    data = open_store(place / "store").dataset("mazes")
    clips = load_clips(data, train_plan.build_plan(config, data, "train").batch(0))
    batch = Edge(config, data, PIXELS, "cpu").batch(clips)
    objective = TrainingLoss(config, model, model)
    noised = objective.sample_noise(batch, 3)
    frames = batch.frames.shape[1]
    for clip in range(len(batch.frames)):
        left_out = int((noised.weight[clip] == 0).sum())
        assert frames // 2 <= left_out <= 0.9 * frames
        kept = frames - left_out
        torch.testing.assert_close(noised.batch.frames[clip, :kept], batch.frames[clip, left_out:])
        pose = batch.conditions.pose
        torch.testing.assert_close(noised.batch.conditions.pose[clip, :kept], pose[clip, left_out:])
        assert (noised.level[clip] > 0).all() and not noised.weight[clip, kept:].any()
    assert float(noised.weight.sum()) == pytest.approx(1)
    half = len(batch.frames) // 2
    halves = [objective.sample_noise(batch.clips(first, first + half), 3) for first in (0, half)]
    torch.testing.assert_close(torch.cat([half.level for half in halves]), noised.level)
    torch.testing.assert_close(torch.cat([half.weight for half in halves]) / 2, noised.weight)


def test_a_checkpoint_tells_whether_its_model_was_ever_shown_a_context(place: Path) -> None:
    store = open_store(place / "store")
    for share, shown in (("0.5", True), ("1.0", False)):
        run = train.train(config_of(place, f"diffusion.null_context={share}", "steps=2"), store)
        with checkpoints.opened(store, run, 2) as folder:
            assert load_model(folder).shown_context is shown


def test_two_ranks_have_the_gradients_of_one(place: Path) -> None:
    store, config = open_store(place / "store"), config_of(place, "diffusion.weighting=sigmoid")
    torch.manual_seed(0)
    model = WorldModel(config.model)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    data = store.dataset("mazes")
    plan, edge = train_plan.build_plan(config, data, "train"), Edge(config, data, PIXELS, "cpu")

    def found(world: int) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for rank in range(world):
            clips = load_clips(data, rank_slice(plan.batch(0), rank, world))
            for part in TrainingLoss(config, model, model).losses(edge.batch(clips), 0):
                (part / world).backward()  # type: ignore[no-untyped-call]
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    one, two = found(1), found(2)
    assert apart(one, two) < 1e-5 * max(float(g.abs().max()) for g in one.values())


def test_temporal_blocks_change_cost_and_truncation_changes_gradients(place: Path) -> None:
    whole = gradients(place)
    scale = max(float(g.abs().max()) for g in whole.values())
    assert apart(gradients(place, "temporal_block=3"), whole) < 1e-5 * scale
    assert apart(gradients(place, "temporal_block=3", "bptt_blocks=3"), whole) < 1e-5 * scale
    assert apart(gradients(place, "temporal_block=3", "bptt_blocks=1"), whole) > 1e-3 * scale


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.dataset=maze"], "unknown dataset 'maze' (did you mean mazes?)"),
        (["min_workers=1"], "min_workers: 1, but workers: 0 trains in this process, without Ray: leave it out"),
        (["workers=2", "min_workers=3"], "min_workers: 3, but there are at most workers: 2"),
        (["workers=3", "min_workers=2"], "(curriculum.0) for each of 2 or 3 workers: the nearest that fits is 48"),
        (["model.height=32"], "model.height: 32, but frames of mazes have 16: set model.height=16"),
        (["data.dataset=blind"], "model.conditions: pose, but blind has no pose: set model.conditions=actions"),
        (["data.dataset=blind", "model.conditions=actions"], "data.clip: palindrome, but blind has no pose"),
        (["model.conditions=both"], "data.clip: palindrome goes with model.conditions=pose only"),
        (["model.conditions=both", "data.clip=mixed"], "data.clip: mixed goes with model.conditions=pose only"),
        (["data.clip=revisits"], 'data.clip: got "revisits", allowed: forward, palindrome, revisit, mixed'),
        (["data.frames_per_step=20"], "data.frames_per_step: 20 frames are not the same whole number of clips of 8"),
        (["workers=2", "validation.clips=3"], "validation.clips: 3 cannot be shared evenly by 2 workers"),
        (["data.curriculum=[{frames: 64}]", "data.frames_per_step=64"], "no episode is long enough"),
        (["engine.precision=bf16"], "engine: precision: bf16 parameters need fp32 ones"),
        (["engine.offload=true"], "engine: offload: ZeRO does it: set backend to deepspeed"),
        (["bptt_blocks=2"], "bptt_blocks: 2 blocks of what length? set temporal_block too"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(place: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        train.check(config_of(place, *overrides), open_store(place / "store"))
    assert told in str(caught.value)


def test_a_held_out_split_that_is_too_short_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.build_plan

    def build_plan(config: Any, dataset: Any, split: str) -> Any:
        if split == "val":
            raise UserError("no episode is long enough")
        return whole(config, dataset, split)

    monkeypatch.setattr(train, "build_plan", build_plan)
    with pytest.raises(UserError, match="^split val, held out for validation: no episode is long enough$"):
        train.check(config_of(place), open_store(place / "store"))
