"""`longtake profile`: counted costs, measurements in processes of their own, and what the answer says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longtake.jobs.cli import main as cli
from longtake.jobs.plots.base import save
from longtake.jobs.plots.bench import costs_curve
from longtake.jobs.presets import in_family, size
from longtake.jobs.profile.answer import answer, lengths_table, models_table
from longtake.jobs.profile.command import profile, read_model, subjects
from longtake.jobs.profile.config import Limits, ProfileConfig
from longtake.jobs.profile.costs import Findings
from longtake.jobs.profile.meter import Cell, Measured, Meter
from longtake.models.analysis.cost import Costs
from longtake.models.config import SamplerConfig
from longtake.storage.store import open_store


def settings(**changes: Any) -> ProfileConfig:
    base = {"name": "tiny", "model": size("tiny"), "families": ["block_ssm", "causal_full"], "frames": [8, 64]}
    return ProfileConfig(**{**base, "limits": Limits(), **changes})


@pytest.fixture(scope="module")
def counted() -> Findings:
    return profile(settings(), measured=False)


@pytest.fixture
def found(counted: Findings) -> Findings:
    """With measurements made up: a step takes 10 ms and 2 MB per frame on top of 100 MB."""
    found = Findings(counted.own, counted.config, counted.costs, counted.horizon, ["mamba is left out: too tall"])
    found.memory = 10**9 + 10**5
    for name in found.costs:
        for frames in (8, 64):
            found.measured[name, "train", frames] = Measured(frames / 100, 3, 10**8 + 2 * 10**6 * frames)
            found.measured[name, "frame", frames] = Measured(frames / 100 if name == "causal_full" else 0.1, 3, 10**6)
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli(arguments)
    told = capsys.readouterr()
    return int(caught.value.code or 0), told.out, told.err


def test_a_dry_run_counts_and_keeps_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("profile", "tiny", "--dry-run", "--frames", "8,64", "--families", "block_ssm,causal_full")
    code, out, err = run(capsys, *line, "--set", "model.window=3")
    assert (code, err) == (0, "")
    assert "step GFLOP" in out and "step s" not in out and "attention 3" in out
    assert "Its cost per frame passes that of block_ssm at frame" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "unknown config 'tinny' (did you mean tiny?)"),
        (["tiny", "--set", "model.windw=3"], "model.windw: unknown key"),
        (["tiny", "--set", "model.causal=false"], "model.causal: false; such a model carries no memory"),
        (["tiny", "--frames", "8,x"], "--frames 8,x: 'x' is no number of frames"),
        (["tiny", "--families", "mambo"], "--families: unknown family 'mambo' (did you mean mamba?)"),
        (["autoencoder"], "only world models are profiled"),
    ],
)
def test_what_cannot_be_profiled_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "profile", *arguments, "--dry-run")
    assert code == 2 and message in err


def test_a_training_is_profiled_as_the_family_it_is_of() -> None:
    model = read_model("demo-causal-window", [])
    own, models, _ = subjects(settings(model=model, families=["causal_window", "mamba"]))
    assert own == "causal_window" and list(models) == ["causal_window", "mamba"] and models[own] == model
    own, models, _ = subjects(settings(name="mine", model=in_family(model, "blocks_1"), families=["mamba"]))
    assert own == "mine" and list(models) == ["mine", "mamba"]


def test_a_family_that_does_not_fit_is_left_out_with_the_reason() -> None:
    model = read_model("small", ["model.height=48", "model.width=48", "model.layers=[{mixer: ssm}]"])
    _, models, left_out = subjects(settings(model=model, families=["block_ssm", "mamba"]))
    assert "block_ssm" not in models and "mamba" in models
    assert left_out[0].startswith("block_ssm is left out") and "does not divide the 6 x 6 tokens" in left_out[0]


def test_the_longest_clip_follows_from_the_lengths_measured(found: Findings) -> None:
    assert found.ceiling("block_ssm") == 450
    assert found.around_ceiling("block_ssm") == [405, 495]
    assert found.foreseen("block_ssm", "train", 100) is None
    too_big = found.foreseen("block_ssm", "train", 480)
    assert too_big is not None and too_big.reason == "not tried: about 1.0 GiB"
    too_slow = found.foreseen("block_ssm", "train", 6400)
    assert too_slow is not None and too_slow.reason == "not tried: about 64 s each"
    assert found.foreseen("block_ssm", "train", 480, memory=False) is None


def cost(costs: Costs, what: str, frames: int) -> float:
    return costs.carried(frames)["total"] if what == "bytes" else costs.frame_flops(frames, SamplerConfig())


def test_the_answer_says_where_memory_ends_and_what_attention_costs(found: Findings) -> None:
    found.measured["block_ssm", "train", 495] = Measured(reason="does not fit into 0.9 GiB")
    said = "\n".join(answer(found))
    layer, longest = found.horizon.longest or (0, 0.0)
    assert f"slowest state (layer {layer}, block" in said and f"halves every {longest:.0f} frames" in said
    assert "windows reach back 10 frames" in said
    crossed = found.crossings("block_ssm", "causal_full")
    assert f"block_ssm at frame {crossed['cost']}, its bytes at frame {crossed['bytes']}." in said
    assert "(6.4 times the time, measured)" in said
    assert "block_ssm 450 (64 ran, 495 did not), causal_full 450 (64 ran)" in said
    assert "mamba is left out: too tall" in said
    costs = found.costs
    for what, frame in crossed.items():
        assert frame is not None
        for at in (frame - 1, frame):
            one, other = (
                costs[name].carried(at)["total"]
                if what == "bytes"
                else costs[name].frame_flops(at, found.config.sampler)
                for name in ("block_ssm", "causal_full")
            )
            assert (other > one) == (at == frame)


def test_huge_states_are_warned_of() -> None:
    model = read_model("small", ["model.dim=640", "model.d_state=256"])
    said = answer(profile(settings(model=model, families=["block_ssm"], frames=[8]), measured=False))
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "MB of scan states per clip or stream (layer 0 with blocks of 1x1: 84 MB)" in warning


def test_tables_rows_and_picture(found: Findings, tmp_path: Path) -> None:
    found.measured["causal_full", "train", 64] = Measured(reason="not done in 10 s")
    assert list(models_table(found)["model"]) == ["block_ssm", "causal_full"]
    table = lengths_table(found).set_index(["model", "frames"])
    assert table.loc[("block_ssm", 64), "step peak MB"] == "228"
    assert table.loc[("causal_full", 64), "step s"] == "not done in 10 s"
    rows = {(row["case"], row["metric"]): row for row in found.rows()}
    assert rows["block_ssm, 64 frames", "step time"]["value"] == 0.64
    assert ("causal_full, 64 frames", "step time") not in rows
    assert rows["block_ssm", "parameters"]["value"] == 102_596
    assert rows["block_ssm, 512 frames", "frame operations"]["value"] > 0  # counted beyond what is measured
    kept = pd.DataFrame([{"run": "r", "name": "profile", **row} for row in rows.values()])
    figure = costs_curve(kept)
    (times,) = (axes for axes in figure.axes if axes.get_title("left") == "training step, s (measured)")
    assert list(times.lines[0].get_ydata())[-1] == 0.64
    assert save(figure, tmp_path / "profile.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="rows of 2 of them"):
        costs_curve(pd.concat([kept, kept.assign(run="s")]))


@pytest.mark.slow
def test_measuring_end_to_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store, picture = tmp_path / "store", tmp_path / "p.png"
    line = ("profile", "tiny", "--frames", "4,128", "--families", "block_ssm", "--seconds", "120")
    code, out, _ = run(capsys, *line, "--store", str(store), "--out", str(picture))
    assert code == 0 and picture.is_file() and "step peak MB" in out and "a training step on one clip" in out
    rows = open_store(store).table("bench")
    times = rows[rows.metric.isin(["step time", "frame time"])]
    assert len(times) == 4 and (times.value > 0).all() and (times.repetitions > 0).all()
    assert set(open_store(store).table("runs").kind) == {"profile"}


@pytest.mark.slow
def test_a_measurement_keeps_its_limits() -> None:
    cell = Cell("train", size("tiny"), 2048)
    assert Meter(60, 2**27)(cell) == Measured(reason="does not fit into 0.12 GiB")
    assert Meter(0.2)(Cell("train", size("base"), 64)).reason == "not done in 0.2 s"
    small, large = (Meter(60)(Cell("train", size("tiny"), frames)).peak_bytes for frames in (8, 512))
    assert small is not None and large is not None
    assert Meter(60, large - 2**26)(Cell("train", size("tiny"), 512)).reason.startswith("does not fit into")
    assert large > small + 100 * 10**6
