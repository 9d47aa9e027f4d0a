"""Plots from rows: what is drawn, what is refused, and that names never lie on each other."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.jobs.plots.base import INKS, curve, distinct, looks, psnr_curve, save, spread
from longtake.jobs.plots.steps import BINS, drift_curve, state_layers, training_curve
from longtake.jobs.plots.trials import history_curve, importances, price_curve, space_curve, unbeaten
from longtake.jobs.report.svg import inline

SYSTEMS = {
    "block_ssm": 22.0,
    "block_ssm/wiped": 18.0,
    "causal_window": 19.0,
    "causal_window/wiped": 18.0,
    "copy_last": 17.5,
    "context_mean": 21.0,
    "nearest_pose": 100.0,
}
RUNS = {"block_ssm": "20261121-041233-k3f9", "causal_window": "20261121-042233-m2p7"}


def make_scores(
    task: str = "retrieval",
    episodes: int = 12,
    horizon: int = 16,
    protocol: str = "0123456789ab",
    step: int = 400,
) -> pd.DataFrame:
    """Rows as an evaluation writes them: quality falls with distance, and episodes differ."""
    random = np.random.default_rng(0)
    rows = []
    for system, level in SYSTEMS.items():
        run = RUNS.get(system.removesuffix("/wiped"), "none")
        for episode in range(episodes):
            ease = np.random.default_rng(episode).normal()
            for frame in range(horizon):
                value = level if level == 100 else level + ease - 0.08 * frame + random.normal(0, 0.5)
                distance = 2 * frame + 1 if task == "retrieval" else frame + 1
                common = {
                    "run": run, "checkpoint": 0 if run == "none" else step, "task": task, "system": system,
                    "protocol": protocol, "dataset": "mazes", "split": "test", "episode": episode, "seed": 0,
                    "frame": frame, "distance": distance,
                }  # fmt: skip
                rows += [
                    {**common, "metric": "psnr", "value": value},
                    {**common, "metric": "ssim", "value": min(1.0, value / 30)},
                ]
    return pd.DataFrame(rows)


def make_steps(steps: int = 1000) -> pd.DataFrame:
    """Rows as training writes them, of both runs."""
    step = np.arange(steps)
    frames = [
        pd.DataFrame(
            {
                "run": run,
                "step": step,
                "loss": 0.05 + 0.1 * np.exp(-step / 200) + 0.002 * number,
                "val_loss": np.where((step + 1) % 50 == 0, 0.06 + 0.1 * np.exp(-step / 200), np.nan),
                "frames_per_s": 900.0,
                "data_wait": 0.03,
                "lr": 1e-3,
            }
        )
        for number, run in enumerate(RUNS.values())
    ]
    return pd.concat(frames, ignore_index=True)


def test_every_system_has_its_look() -> None:
    found = looks(make_scores(episodes=2, horizon=2))
    assert list(found) == [*SYSTEMS][:4] + ["context_mean", "copy_last", "nearest_pose"]
    assert found["block_ssm"].color == found["block_ssm/wiped"].color != found["causal_window"].color
    assert [found[s].dash for s in ("block_ssm", "block_ssm/wiped", "copy_last")] == [
        "solid",
        "dashed",
        "dotted",
    ]


def test_the_curve_names_every_line_and_leaves_the_oracle_off_the_scale() -> None:
    figure = psnr_curve(make_scores(), window=6)
    axes = figure.axes[0]
    words = [text.get_text() for text in axes.texts]
    assert {"block_ssm", "block_ssm, wiped", "copy last frame", "context mean", "reach of windows, 6 frames"} <= set(
        words
    )
    assert axes.get_ylim()[1] < 40
    assert "100 dB, off the scale" in axes.get_title(loc="right")


def test_a_plot_refuses_to_mix_protocols() -> None:
    mixed = pd.concat([make_scores(), make_scores(protocol="ffffffffffff")])
    with pytest.raises(ValueError, match="protocol: retrieval"):
        psnr_curve(mixed)


def test_a_plot_without_rows_says_so() -> None:
    with pytest.raises(ValueError, match="no lpips"):
        psnr_curve(make_scores(episodes=2, horizon=2), metric="lpips")
    with pytest.raises(ValueError, match="no row of nobody"):
        training_curve(make_steps(10), {"nobody": "x"})


def test_only_the_newest_checkpoint_is_drawn() -> None:
    old = make_scores(episodes=2, horizon=2, step=200)
    kept = distinct(pd.concat([old, make_scores(episodes=2, horizon=2, step=400)]))
    assert set(kept.checkpoint[kept.run != "none"]) == {400}


def test_runs_of_one_name_are_told_apart() -> None:
    scores = make_scores(episodes=2, horizon=2)
    twin = scores[scores.run == RUNS["block_ssm"]].assign(run="20261122-000000-zzzz")
    systems = set(distinct(pd.concat([scores, twin])).system)
    assert {
        "block_ssm k3f9",
        "block_ssm k3f9/wiped",
        "block_ssm zzzz",
        "block_ssm zzzz/wiped",
        "copy_last",
    } <= systems
    assert "block_ssm" not in systems


def test_training_curves_are_thinned() -> None:
    figure = training_curve(make_steps(5000), {run: name for name, run in RUNS.items()})
    loss, held = figure.axes
    assert [len(line.get_xdata()) for line in loss.lines] == [BINS, BINS]
    assert [len(line.get_xdata()) for line in held.lines] == [100, 100]


def test_stages_of_the_curriculum_are_marked() -> None:
    steps = make_steps(100)
    runs = {run: name for name, run in RUNS.items()}
    one = training_curve(steps.assign(clip_frames=16), runs)
    assert not [text for axes in one.axes for text in axes.texts if text.get_text().endswith("frames")]
    staged = training_curve(steps.assign(clip_frames=np.where(steps.step < 40, 16, 64)), runs)
    for axes in staged.axes:
        marks = {text.get_text(): text.xy[0] for text in axes.texts if text.get_text().endswith("frames")}
        assert marks == {"16 frames": 0, "64 frames": 40}


def test_state_is_drawn_by_layer() -> None:
    steps = make_steps(50).assign(
        **{f"state_{kind}.layers.{layer}.ssm": 1.0 * layer for kind in ("std", "rank") for layer in range(14)}
    )
    alone = {RUNS["block_ssm"]: "block_ssm"}
    assert state_layers(steps) == [f"layers.{layer}.ssm" for layer in (0, 3, 5, 8, 10, 13)]
    spread_, rank = drift_curve(steps, alone).axes
    assert [float(line.get_ydata()[0]) for line in spread_.lines] == [0, 3, 5, 8, 10, 13]
    assert len(rank.lines) == 6 and "layer 13" in [text.get_text() for text in rank.texts]
    with pytest.raises(ValueError, match="only layers that scan"):
        drift_curve(make_steps(5), alone)


def make_trials(count: int = 12, better: str = "lower") -> pd.DataFrame:
    """Rows as a sweep writes them: the rate decides, the other setting does not."""
    random = np.random.default_rng(1)
    rate = 10.0 ** -random.uniform(1, 5, count)
    return pd.DataFrame(
        {
            "sweep": "s", "trial": range(count), "run": "r", "state": "done", "reason": "", "better": better,
            "objective": np.abs(np.log10(rate) + 3), "step": 8, "frames": 64, "seconds": random.uniform(1, 9, count),
            "rate": rate, "colour": ["red", "blue"] * (count // 2),
        }
    )  # fmt: skip


def test_what_decided_is_found() -> None:
    found = importances(make_trials(40))
    assert found["rate"] > 0.8 and sum(found.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="2 done trials"):
        importances(make_trials(2))


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_front_is_unbeaten(better: str) -> None:
    trials = make_trials(30, better).assign(price=lambda rows: rows.seconds)
    front = set(unbeaten(trials, better).trial)
    sign = 1 if better == "higher" else -1
    for one in trials.itertuples():
        beaten = ((trials.seconds < one.seconds) & (sign * trials.objective > sign * one.objective)).any()
        assert (one.trial in front) != beaten


def test_a_sweep_is_drawn_against_what_it_weighs() -> None:
    trials = make_trials(12)
    assert [axes.get_xlabel() for axes in price_curve(trials).axes] == ["seconds of training"]
    weighing = trials.assign(ms_per_frame=trials.seconds * 2, carried_bytes=np.nan)
    (axes,) = price_curve(weighing).axes
    assert axes.get_xlabel() == "ms to generate a frame" and max(axes.lines[0].get_xdata()) == 2 * trials.seconds.max()
    assert len(price_curve(weighing.assign(carried_bytes=1.0)).axes) == 2


def test_numbers_beside_points_do_not_lie_on_each_other() -> None:
    front = make_trials(4).head(3).assign(seconds=[1.0, 1.01, 9.0], objective=[3.0, 2.99, 1.0])
    assert [text.get_text() for text in price_curve(front).axes[0].texts] == ["0", "2"]


def test_sweeps_are_drawn_with_their_best() -> None:
    trials = make_trials(12)
    best, points = history_curve(trials).axes[0].lines
    assert list(best.get_ydata()) == list(trials.objective.cummin()) and len(points.get_xdata()) == 12
    axes = space_curve(trials).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 12 and sum(line.get_linewidth() == 2 for line in lines) == 3
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["rate", "colour", "objective"]
    with pytest.raises(ValueError, match="no setting differs"):
        space_curve(trials.drop(columns=["rate", "colour"]))


def test_files(tmp_path: Path) -> None:
    figure = psnr_curve(make_scores(episodes=2, horizon=4), window=3)
    assert save(figure, tmp_path / "deep" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in save(figure, tmp_path / "curve.svg").read_text()


def test_inline_svg_takes_every_colour_from_the_page() -> None:
    text = inline(psnr_curve(make_scores(episodes=3, horizon=4), window=3), "a", 'retrieval "curve"')
    assert not re.findall(r"#[0-9a-f]{6}\b", text)
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= {*INKS.values(), "font"}
    assert all(name.startswith("a-") for name in re.findall(r'\bid="([^"]+)"', text))
    assert {name.startswith("a-") for name in re.findall(r"url\(#([^)]+)\)", text)} == {True}
    assert ">block_ssm</text>" in text and "DejaVu" not in text


@given(st.lists(st.floats(0, 10), max_size=8), st.floats(0.1, 1))
def test_names_keep_their_distance(values: list[float], step: float) -> None:
    values = sorted(values)
    places = spread(values, step, 0, 10)
    assert len(places) == len(values)
    assert all(b - a >= step * 0.999 for a, b in pairwise(places))
    assert all(-1e-9 <= place <= 10 + 1e-9 for place in places)


def test_a_window_beyond_all_distances_is_not_drawn() -> None:
    figure = psnr_curve(make_scores(horizon=2), window=9)
    figure.draw_without_rendering()
    assert not [text for axes in figure.axes for text in axes.texts if "of windows, 9" in text.get_text()]


@pytest.mark.parametrize("kind", ["distance", "training"])
def test_names_of_many_lines_stand_beside_the_panel_and_not_on_each_other(kind: str) -> None:
    names = [f"model_{number:02d}" for number in range(40)]
    if kind == "distance":
        rows = make_scores(episodes=2, horizon=3)
        rows = rows[rows.system == "copy_last"]
        figure = psnr_curve(pd.concat([rows.assign(system=name, run=name) for name in names]))
    else:
        steps = pd.DataFrame({"run": np.repeat(names, 2), "step": [0, 1] * 40, "loss": 1.0, "val_loss": 1.0})
        figure = training_curve(steps, {name: name for name in names})
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text() in names]
        middles = sorted((box.y0 + box.y1) / 2 for box in boxes)
        panel = axes.get_window_extent()
        assert len(boxes) == 40 and all(after - before > 14 for before, after in pairwise(middles))
        assert panel.y0 - 8 < middles[0] and middles[-1] < panel.y1 + 8 and panel.width > 300


def test_few_episodes_have_no_band_and_squash_no_picture() -> None:
    wild = make_scores(episodes=3, horizon=8)
    wild.loc[wild.episode == wild.episode.iloc[0], "value"] += 60
    (axes,) = psnr_curve(wild).axes
    means = curve(wild)["mean"]
    assert "fewer than 5 episodes" in axes.get_xlabel()
    assert axes.get_ylim()[1] < means[means < 100].max() + 0.1 * (means.max() - means.min()) + 1
    (axes,) = psnr_curve(make_scores(episodes=6, horizon=8)).axes
    assert axes.get_xlabel() == "distance (frames), n = 6 episodes"


def test_a_perfect_floor_squashes_nothing() -> None:
    """Of three episodes one stands still: a copied frame is perfect there, 100 dB, and 45 in the mean."""
    rows = make_scores(episodes=3, horizon=8)
    still = (rows.system == "copy_last") & (rows.episode == rows.episode.iloc[0])
    rows.loc[still, "value"] = 100.0
    models = rows[rows.run != "none"]
    (axes,) = psnr_curve(rows).axes
    means = curve(models)["mean"]
    low, high = axes.get_ylim()
    assert high - low < 3 * (means.max() - means.min()) + 24 and high < 60
    assert "copy last frame: in part off the scale" in axes.get_xlabel() and "n = 3 episodes" in axes.get_xlabel()


def test_a_pruned_trial_takes_no_strong_line() -> None:
    """It looked better, early, than any that is done."""
    trials = pd.DataFrame(
        {
            "sweep": "s", "trial": range(8), "run": [f"r{n}" for n in range(8)], "better": "higher",
            "state": ["pruned"] * 4 + ["done"] * 4, "objective": [90.0, 80, 70, 60, 10, 20, 30, 40],
            "model.window": range(8),
        }
    )  # fmt: skip
    (axes,) = space_curve(trials).axes
    strong = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 2.0]
    assert strong == [6 / 7, 1.0]
