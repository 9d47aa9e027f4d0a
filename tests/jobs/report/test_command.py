"""The report page: what it says, what it refuses, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import shlex
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from longtake.datasets import video
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs import cli
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.report import command as report
from longtake.jobs.report.claims import best_model, claims, reach, summary, verdict
from longtake.jobs.report.film import EDGE_PX, SCREEN, SHOWN, make_film
from longtake.jobs.report.gather import Run, find_runs, gather, windows_reach
from longtake.jobs.report.strips import even, generate, make_strips, mosaic, pick_episodes, pick_models, show, shrunk
from longtake.models.config import ModelConfig
from longtake.models.world_model import WorldModel
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.schema import NO_RUN
from longtake.training import checkpoints

BLOCK, WINDOW = "20261121-041233-k3f9", "20261121-042233-m2p7"
NAMES = {BLOCK: "block_ssm", WINDOW: "causal_window"}
STEP = 400


def small_model(mixer: str) -> ModelConfig:
    layers = [
        {"mixer": mixer, "spatial_block": [1, 1]},
        {"mixer": mixer, "spatial_block": [2, 2], "window": 3},
    ]
    return ModelConfig.model_validate_json(
        json.dumps({"height": 16, "width": 16, "dim": 32, "window": 2, "d_state": 8, "headdim": 16, "layers": layers})
    )


def write_dataset(store: Store) -> str:
    """Forty short episodes of drifting colours; returns the fingerprint."""
    random = np.random.default_rng(0)
    about = {
        "recipe": {"cells": 4},
        "fps": 10.0,
        "action_space": {"turn": "degrees"},
        "pose": ["x", "y", "yaw"],
    }
    writer = DatasetWriter(store, "mazes", **about, test=0.2)
    episodes = []
    for _ in range(40):
        walk = np.cumsum(random.normal(0, 0.3, (12, 3)), 0).astype(np.float32)
        shade = np.clip(128 + 60 * walk[:, None, None, :] + random.normal(0, 20, (12, 16, 16, 3)), 0, 255)
        episodes.append(Episode(shade.astype(np.uint8), random.normal(size=(12, 2)).astype(np.float32), walk))
    writer.write_shard(0, episodes)
    return writer.finalize(1).fingerprint


def write_run(store: Store, run: str, config: ModelConfig) -> None:
    """A finished training: its row, its steps and a checkpoint of random weights."""
    told = {"name": NAMES[run], "steps": STEP, "model": config.model_dump(mode="json")}
    row = {
        "run": run, "kind": "train", "name": NAMES[run], "status": "done", "seed": 0,
        "config": json.dumps(told), "config_hash": "abcdef012345", "dataset": "mazes",
        "code_version": "0.1.0+gabc", "hardware": "2 x <CPU> & co", "versions": json.dumps({"torch": "2.13"}),
    }  # fmt: skip
    tables.append(store, "runs", [row], part=run)
    steps = [
        {
            "run": run, "step": i, "loss": 1 / (1 + i), "val_loss": 0.5 if i % 5 == 4 else np.nan,
            "frames_per_s": 900.0, "data_wait": 0.02, "clip_frames": 8 if i < 10 else 16,
            **{f"state_{name}.layers.{layer}.ssm": 0.1 * layer + i for name in ("std", "rank") for layer in (0, 1)},
        }
        for i in range(20)
    ]  # fmt: skip
    tables.append(store, "steps", steps, part=run)
    torch.manual_seed(0)
    with checkpoints.writing(store, run, STEP) as folder:
        save_file({k: v.clone() for k, v in WorldModel(config).state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps({"model": config.model_dump(mode="json"), "trained_frames": 8, "tokenizer": "pixels"})
        )
    checkpoints.seal(store, run, STEP, 1, {})


def score_all(store: Store, protocol: Protocol) -> None:
    """Every system on every episode of the protocol, as `longtake evaluate` does, without Ray."""
    store.write_bytes(f"protocols/{protocol.hash}.json", protocol.model_dump_json().encode())
    chosen = tuple(int(e) for e in store.dataset("mazes").episodes("test").episode.head(protocol.episodes))
    systems = [(floor, NO_RUN, 0) for floor in ("copy_last", "context_mean", "nearest_pose")]
    systems += [(name + wiped, run, STEP) for run, name in NAMES.items() for wiped in ("", "/wiped")]
    for system, run, step in systems:
        cell = ScoreCell(
            store.uri, "mazes", protocol, system, run, step, "wiped" if system.endswith("wiped") else "whole", chosen
        )
        part = f"{run}-{system.replace('/', '-')}-{protocol.hash}"
        tables.append(store, "scores", score_cell(cell), part=part)


def make_protocol(task: str, dataset: str, **more: object) -> Protocol:
    plain = {
        "task": task,
        "context": 6,
        "horizon": 6,
        "episodes": 6,
        "dataset": dataset,
        "sampler": {"steps": 1},
    }
    return Protocol.model_validate_json(json.dumps({**plain, **more}))


def write_sweep(store: Store, runs: list[str]) -> str:
    """A sweep of these runs and of some that left nothing else; returns its id."""
    sweep = "20261121-050000-swee"
    tables.append(store, "runs", [{"run": sweep, "kind": "sweep", "name": "rates", "status": "done"}], part=sweep)
    rows = [
        {
            "sweep": sweep, "trial": i, "run": runs[i] if i < len(runs) else f"20261121-05000{i}-gone",
            "state": "pruned" if i in (4, 6) else "done", "objective": 0.1 + 0.02 * i, "better": "lower", "step": 8,
            "frames": 64, "seconds": 9.0 - 2 * i if i < 4 else 3.0 + i, "engine.lr": 10.0 ** -(i % 4),
            "model.window": 2 + i % 3, "model.layers": "mixed" if i % 2 else "plain",
        }
        for i in range(11)
    ]  # fmt: skip
    tables.append(store, "trials", rows, part=sweep)
    return sweep


def write_profile(store: Store, run: str) -> str:
    """A profile of the model of a run, beside a rival; returns its id."""
    profile = "20261121-060000-prof"
    (row,) = store.table("runs", where=f"run == '{run}'").config
    config = json.dumps({"name": "small", "model": json.loads(row)["model"]})
    about = {"run": profile, "kind": "profile", "name": "small", "status": "done", "config": config}
    tables.append(store, "runs", [about], part=profile)
    rows = [
        {
            "run": profile, "name": "profile", "case": f"{name}, {frames} frames", "metric": metric,
            "value": rise * frames, "unit": "s", "repetitions": 3,
        }
        for name, rise in {"block_ssm": 0.01, "causal_full": 0.03}.items()
        for frames in (4, 16, 64)
        for metric in ("frame operations", "carried total", "step time", "step memory")
    ]  # fmt: skip
    tables.append(store, "bench", rows, part=profile)
    return profile


def make_store(folder: Path) -> Store:
    """A store after two trainings and an evaluation."""
    made = open_store(folder)
    fingerprint = write_dataset(made)
    write_run(made, BLOCK, small_model("ssm"))
    write_run(made, WINDOW, small_model("none"))
    for task in ("retrieval", "rollout"):
        score_all(made, make_protocol(task, fingerprint, metrics=["psnr"]))
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Tests only read it."""
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.build(store, [BLOCK, WINDOW], tmp_path_factory.mktemp("out") / "page.html").read_text()


class Balance(HTMLParser):
    """Tags that are opened and closed in order, and everything that would be loaded."""

    VOID = {"meta", "link", "img", "br", "wbr", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [found[name] or "" for name in ("src", "href") if name in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(page: str) -> None:
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert all(target.startswith(("data:", "#")) for target in reader.loads)
    assert "@import" not in page and page.count("<script") == page.count("<script>") == 1
    assert len(reader.ids) == len(set(reader.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)


def test_the_page_shows_everything_asked_for(page: str) -> None:
    assert page.count('class="strip"') == 3
    assert page.count("<video") == 2  # of retrieval and rollout
    assert page.count("<svg") == 12  # two tasks, training and state, each at three widths
    for word in (
        BLOCK,
        WINDOW,
        "abcdef012345",
        "0.1.0+gabc",
        "2 x &lt;CPU&gt; &amp; co",
        "prefers-color-scheme",
        "longtake evaluate",
    ):
        assert word in page
    for system in (
        "block_ssm, wiped",
        "causal_window, wiped",
        "copy last frame",
        "context mean",
        "nearest pose (oracle)",
    ):
        assert f"{system}</th>" in page


def test_the_default_place_is_in_the_store(store: Store) -> None:
    assert report.build(store, ["latest"]) == Path(store.path("reports", f"{WINDOW}.html"))


def test_pictures_are_the_frames_that_were_scored(store: Store) -> None:
    material = gather(store, [BLOCK])
    task = material.tasks[0]
    assert task.task == "retrieval" and task.definition is not None
    shown = show(material, task)
    assert shown is not None
    strips = make_strips(shown)
    assert [[row.name for row in strip.rows] for strip in strips] == [
        ["truth", "block_ssm", "memory wiped", "nearest pose (oracle)"]
    ] * 3
    assert [strip.distances for strip in strips] == [[3, 5, 7, 9, 11]] * 3
    episodes = tuple(strip.episode for strip in strips)
    cell = ScoreCell(store.uri, "mazes", task.definition, "block_ssm", BLOCK, STEP, "whole", episodes)
    made = generate(cell)
    assert made.shape == (3, 6, 16, 16, 3)
    told = pd.DataFrame(score_cell(cell)).sort_values(["episode", "frame"]).value.to_numpy()
    rows = task.scores[(task.scores.system == "block_ssm") & task.scores.episode.isin(episodes)]
    assert np.array_equal(told, rows.sort_values(["episode", "frame"]).value.to_numpy())


def test_a_checkpoint_that_is_gone_is_told(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    checkpoints._delete(copy, BLOCK, STEP)
    material = gather(copy, [BLOCK])
    shown = show(material, material.tasks[0])
    assert shown is not None and [len(strip.rows) for strip in make_strips(shown)] == [2, 2, 2]
    assert any("block_ssm: no pictures" in note for note in material.notes)


def test_the_film_is_what_was_asked_and_what_was_made(store: Store) -> None:
    """Every frame of every episode at its time: those of the context with an edge, a wiped one's grey."""
    material = gather(store, [BLOCK])
    shown = show(material, material.tasks[0])
    assert shown is not None
    film = make_film(shown)
    moving = video.read(io.BytesIO(base64.b64decode(film.uri.partition(",")[2])))
    assert moving.frames.shape == (12, film.height, film.width, 3) and moving.fps == pytest.approx(film.fps)
    assert film.moments[:2] == ["context, frame 1 of 6", "context, frame 2 of 6"]
    assert film.moments[6:8] == ["generated, not judged", "generated, distance 3"] and film.context == 6
    assert [row.name for row in film.rows] == ["truth", "block_ssm", "memory wiped", "nearest pose (oracle)"]
    side = 160 + 2 * EDGE_PX
    for t in (0, 5, 6, 11):
        for clip in range(3):
            tile = moving.frames[t, :side, clip * (side + EDGE_PX) :][:, :side].astype(int)
            inside = tile[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX].reshape(16, 10, 16, 10, 3).mean((1, 3))
            assert np.abs(inside - shown.truth[clip, t]).mean() < 12
            assert np.abs(tile[1, 40:120] - (SHOWN if t < 6 else SCREEN)).mean() < 25
    wiped = moving.frames[2, 2 * (side + EDGE_PX) + 40 : 3 * side, 40:120]
    assert np.abs(wiped.astype(int) - 127).max() < 12


def test_a_film_that_may_not_be_large_shows_less_and_says_so(store: Store) -> None:
    """The best model stays to the last, then frames of time go."""
    material = gather(store, [BLOCK, WINDOW])
    shown = show(material, material.tasks[0])
    assert shown is not None and len(shown.models) == 2
    whole = make_film(shown)
    assert whole.left_out == "" and len(whole.rows) == 6
    best, worst = shown.models
    fewer = make_film(shown, len(whole.uri) - 1)
    assert [row.name for row in fewer.rows] == ["truth", best, "memory wiped", "nearest pose (oracle)"]
    assert (fewer.left_out, fewer.moments) == (worst, whole.moments)
    short = make_film(shown, len(fewer.uri) - 1)
    assert len(short.uri) < len(fewer.uri) and len(short.moments) < 12 and len(short.rows) == 4
    assert short.left_out == f"{worst} and all but {len(short.moments)} of 12 frames"
    assert short.moments[0] == "context, frame 1 of 6" and short.moments[-1] == "generated, distance 11"


def test_of_many_models_the_best_are_pictured_with_their_controls(store: Store) -> None:
    rows = [scores_of({name: 20.0 - number}) for number, name in enumerate("abcdefg")]
    scores = pd.concat([*rows, *(scores_of({f"{name}/wiped": 9.0}) for name in "abc"), scores_of({"nearest_pose": 40})])
    material = gather(store, [BLOCK])
    task = dataclasses.replace(material.tasks[0], scores=scores)
    assert pick_models(material, task) == ["a", "b", "c", "d"]  # with three wiped and the oracle eight rows
    assert material.notes == ["retrieval: pictures of the 4 best models only; left out: e, f, g."]


def test_large_frames_are_shrunk_in_strips() -> None:
    """By a whole number, each pixel the mean of those it stands for."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 130, 200, 3), np.uint8)
    small = shrunk(frames)
    assert small.shape == (2, 43, 66, 3)
    assert np.abs(small[1, 2, 5] - frames[1, 6:9, 15:18].mean((0, 1))).max() <= 0.5
    assert shrunk(frames[:, :, :80]).shape == (2, 130, 80, 3)


@pytest.mark.slow
def test_a_sweep_has_a_page_with_its_best_runs(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    sweep = write_sweep(copy, [WINDOW, BLOCK])
    made = report.build(copy, [sweep])
    text = made.read_text()
    assert made.name == f"{sweep}.html"
    assert [run.id for run in gather(copy, [sweep]).runs] == [WINDOW, BLOCK]  # the best first; the rest have no run
    for plot in ("history", "space", "importances", "price"):
        assert f'id="sweep-{sweep}-{plot}"' in text
        assert f"--plot {plot}.png --draw {plot} --store" in text
    assert "Trials: 9 done, 2 pruned" in text and f"longtake report {sweep} --store" in text


def words_of(svg: str) -> set[str]:
    """What is written in a picture, but for numbers: how many ticks there are depends on the width."""
    told = [html.unescape(re.sub("<.*?>", "", text)).strip() for text in re.findall(r"<text.*?</text>", svg, re.DOTALL)]
    return {word for word in told if re.search("[a-z]", word)}


@pytest.mark.drill
def test_every_plot_is_drawn_again_by_the_command_under_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same names, marks and axes."""
    copy = open_store(tmp_path / "store")
    store.download_dir("tables", tmp_path / "store" / "tables")  # no datasets: no pictures
    sweep = write_sweep(copy, [WINDOW, BLOCK])
    write_profile(copy, BLOCK)
    text = report.build(copy, [sweep]).read_text()
    monkeypatch.chdir(tmp_path)
    drawn = set()
    for section in re.findall(r'<section class="card".*?</section>', text, re.DOTALL):
        commands = re.findall(r"Draw it again: <code>(.*?)</code>", section)
        svgs = re.findall(r"<svg.*?</svg>", section, re.DOTALL)
        assert len(commands) == (len(svgs) > 0) or "horizon.png" in commands[0]
        for command in commands:
            words = shlex.split(html.unescape(command).replace(".png", ".svg"))
            with pytest.raises(SystemExit) as left:
                cli.main(words[1:])
            assert not left.value.code
            picture = Path(words[words.index("--plot") + 1])
            drawn.add(picture.stem)
            if svgs:
                assert words_of(svgs[0]) <= words_of(picture.read_text()), picture
    plots = {"retrieval", "rollout", "horizon", "training", "state", "costs"}
    assert drawn == plots | {"history", "space", "importances", "price"}


def test_a_sweep_without_trials_says_so(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    tables.append(copy, "runs", [{"run": "s", "kind": "sweep", "name": "rates"}], part="s")
    text = report.build(copy, ["s"]).read_text()
    assert "Trials: no trial yet" in text and "no plot of its history" in text


def test_costs_are_shown_where_the_model_was_profiled(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("tables", tmp_path / "tables")
    profile = write_profile(copy, BLOCK)
    assert [(found.id, found.runs) for found in gather(copy, [BLOCK, WINDOW]).profiles] == [(profile, ["block_ssm"])]
    assert gather(copy, [WINDOW]).profiles == []


@pytest.mark.slow
def test_the_page_of_a_long_run_is_quick_and_small(store: Store, tmp_path: Path) -> None:
    """100,000 steps and 20 scored checkpoints: under 20 s (of the processor: it may be busy) and 15 MB."""
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    count = 100_000
    random = np.random.default_rng(0)
    steps = pd.DataFrame({"run": BLOCK, "step": np.arange(count), "frames": 256, "frames_per_s": 900.0})
    steps["loss"] = random.normal(0.2, 0.01, count)
    steps["clip_frames"] = np.where(steps.step < 50_000, 16, 64)
    held = steps.step % 500 == 499
    for name in ("val_loss", *(f"state_{kind}.layers.{layer}.ssm" for kind in ("std", "rank") for layer in range(12))):
        steps[name] = np.where(held, random.normal(1, 0.1, count), np.nan)
    tables.append(copy, "steps", steps, part=f"{BLOCK}-long")
    rows = copy.table("scores", where=f"run == '{BLOCK}'").drop(columns="event_time")
    for number in range(19):
        tables.append(copy, "scores", rows.assign(checkpoint=number * 20), part=f"eval-{number}")
    began = time.process_time()
    page = report.build(copy, [BLOCK])
    assert time.process_time() - began < 20
    assert page.stat().st_size < 15e6


def test_unknown_runs_are_named(store: Store) -> None:
    with pytest.raises(UserError, match=r"unknown run '20261121-041233-k3f8' \(did you mean") as caught:
        report.build(store, ["20261121-041233-k3f8", "nobody", BLOCK])
    assert len(caught.value.lines) == 2


def test_a_store_without_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="longtake train"):
        report.build(open_store(tmp_path), ["latest"])


def test_a_run_without_scores_still_has_a_page(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    write_run(copy, BLOCK, small_model("ssm"))
    text = report.build(copy, [BLOCK]).read_text()
    assert "There are no scores to show yet" in text and 'id="training"' in text and 'class="claims"' not in text


def rescored(store: Store, tmp_path: Path, run: str, task: str, seed: int) -> Store:
    """A copy of the store where a run was scored on a task under another protocol too, later."""
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    rows = store.table("scores", where=f"run in ['{run}', 'none'] and task == '{task}'").drop(columns="event_time")
    tables.append(copy, "scores", rows.assign(protocol=f"other{seed:07d}"), part=f"later-{run}")
    return copy


def test_the_newest_shared_protocol_is_shown_and_the_other_told(store: Store, tmp_path: Path) -> None:
    copy = rescored(store, tmp_path, BLOCK, "rollout", 1)
    alone, both = gather(copy, [BLOCK]), gather(copy, [BLOCK, WINDOW])
    assert alone.tasks[1].protocol == "other0000001" and alone.tasks[1].definition is None
    assert both.tasks[1].protocol == gather(store, [BLOCK]).tasks[1].protocol
    assert any("left out: other0000001" in note for note in both.notes)


def test_runs_without_a_shared_protocol_are_refused(store: Store, tmp_path: Path) -> None:
    copy = rescored(store, tmp_path, BLOCK, "rollout", 1)
    keep = copy.table("scores", where=f"not (run == '{BLOCK}' and task == 'rollout' and protocol != 'other0000001')")
    copy.fs.rm(copy.path("tables", "scores"), recursive=True)
    tables.append(copy, "scores", keep.drop(columns="event_time"), part="kept")
    with pytest.raises(UserError, match="rollout: the runs share no protocol"):
        gather(copy, [BLOCK, WINDOW])


def scores_of(levels: dict[str, float], spread: float = 0.2, episodes: int = 24) -> pd.DataFrame:
    """PSNR rows around a level per system; episodes differ far more than systems do."""
    rows = []
    for number, (system, level) in enumerate(levels.items()):
        noise = np.random.default_rng(number).normal(0, spread, episodes)
        for episode in range(episodes):
            for frame in range(8):
                run = (
                    NO_RUN if system in ("copy_last", "context_mean", "nearest_pose") else system.removesuffix("/wiped")
                )
                value = level + 3 * (episode % 5) + noise[episode]
                rows.append((run, 1, "retrieval", system, "p", episode, frame, 2 * frame + 1, "psnr", value))
    names = [
        "run",
        "checkpoint",
        "task",
        "system",
        "protocol",
        "episode",
        "frame",
        "distance",
        "metric",
        "value",
    ]
    return pd.DataFrame(rows, columns=names)


def test_claims_tell_wins_losses_and_doubts() -> None:
    scores = scores_of({"a": 20, "b": 19, "a/wiped": 17, "b/wiped": 17, "copy_last": 19.97, "context_mean": 21})
    made = claims(scores, window=6)
    found = {claim.other: claim for claim in made}
    assert {other: claim.verdict for other, claim in found.items()} == {
        "itself with its memory wiped": "better",
        "b": "better",
        "copying the last frame": "undecided",
        "the mean of the context": "worse",
    }
    assert re.fullmatch(r"beats b by 0\.95 dB \(95\s% interval 0\.86 to 1\.05, n\s=\s24\)", found["b"].sentence)
    assert found["the mean of the context"].sentence.startswith("loses to the mean of the context by 0.")
    assert re.match(r"cannot be told apart from \w.*: [+\u2212]0\.\d\d dB", found["copying the last frame"].sentence)
    assert verdict(made, "retrieval", 6) == (
        "On retrieval, at distances beyond the 6 frames that windows reach, a beats itself with its memory wiped "
        "and b, loses to the mean of the context, and cannot be told apart from copying the last frame."
    )


def test_claims_use_all_distances_where_none_is_beyond_the_window() -> None:
    scores = scores_of({"a": 20, "copy_last": 17})
    assert reach(scores, 99) == 0 and reach(scores, 6) == 6
    assert verdict(claims(scores, 99), "retrieval", 0) == "On retrieval a beats copying the last frame."


def test_floors_alone_make_no_claim() -> None:
    assert claims(scores_of({"copy_last": 17, "context_mean": 21}), window=6) == []
    assert best_model(scores_of({"copy_last": 17}), 0) is None


def test_the_table_marks_the_best_model_not_the_best_floor() -> None:
    found = summary(scores_of({"a": 20, "b": 19, "context_mean": 25}), window=6)
    assert found.columns == [("PSNR (dB)", "all distances"), ("PSNR (dB)", "beyond 6 frames")]
    marks = {row.look.system: [bool(cell and cell.best) for cell in row.cells] for row in found.rows}
    assert marks == {
        "a": [True, True], "b": [False, False], "context_mean": [False, False],
    }  # fmt: skip


def test_the_table_knows_which_way_a_metric_points() -> None:
    means = {"lpips_vgg": {"a": 0.5, "b": 0.4}, "sharpness": {"a": -3, "b": 9}, "fvd": {"a": 300, "b": 290}}
    scores = pd.concat([scores_of(values, spread=0).assign(metric=metric) for metric, values in means.items()])
    of_clips = {"episode": -1, "frame": -1, "distance": 0, "clips": 24}
    sets = scores[scores.metric == "fvd"].drop_duplicates("system").assign(**of_clips)
    found = summary(pd.concat([scores[scores.metric != "fvd"], sets]), window=6)
    assert found.columns == [
        ("LPIPS (VGG16), lower is better", "all distances"),
        ("LPIPS (VGG16), lower is better", "beyond 6 frames"),
        ("Sharpness (dB), best at 0", "all distances"),
        ("Sharpness (dB), best at 0", "beyond 6 frames"),
        ("FVD, lower is better", "of 24 clips"),
    ]
    marks = {row.look.system: [bool(cell and cell.best) for cell in row.cells] for row in found.rows}
    assert marks == {"a": [False, False, True, True, False], "b": [True, True, False, False, True]}
    assert {row.episodes for row in found.rows} == {24}
    assert [row.cells[-1] and row.cells[-1].half for row in found.rows] == ["", ""]


def test_episodes_are_picked_by_rule() -> None:
    scores = scores_of({"a": 20, "copy_last": 17})
    assert list(pick_episodes(scores, 6).values()) == ["a hard one", "a middling one", "an easy one"]
    assert pick_episodes(scores, 6) == pick_episodes(scores.sample(frac=1, random_state=0), 6)
    assert len(pick_episodes(scores_of({"a": 20}, episodes=2), 6)) == 2


def model_run(**model: object) -> Run:
    return Run("r", "n", {}, {"model": model})


def test_windows_reach_as_far_as_layers_pass_on_what_they_saw() -> None:
    ssm, local, plain = {"mixer": "ssm"}, {"mixer": "none"}, {"mixer": "attention", "local": "none"}
    four = model_run(window=4, layers=[ssm], depth=4)
    assert windows_reach([four]) == 13, "1 + 4 layers x 3"
    mixed = model_run(window=6, layers=[ssm | {"window": 9}, {"local": "none", "window": 50}, ssm])
    assert windows_reach([mixed]) == 1 + 8 + 5
    assert windows_reach([four, mixed]) == 14
    wide = model_run(window=8, layers=[local], depth=4)
    assert windows_reach([wide]) == 29, "nothing but windows"
    assert windows_reach([four, wide]) == 13, "what only the memory of the first can know begins beyond its own windows"
    assert windows_reach([model_run(layers=[plain])]) == windows_reach([]) == 0
    assert windows_reach([Run("r", "n", {}, {}), model_run(kind="autoencoder")]) == 0


def test_runs_of_one_name_are_told_apart(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    for run in (BLOCK, WINDOW):
        tables.append(copy, "runs", [{"run": run, "kind": "train", "name": "same", "config": "{}"}], part=run)
    assert [run.name for run in find_runs(copy, [BLOCK, WINDOW])] == ["same k3f9", "same m2p7"]


def test_a_mosaic_keeps_pixels_and_marks_what_was_forgotten() -> None:
    tile = np.full((16, 16, 3), 7, np.uint8)
    image = mosaic([[tile, tile, tile], [None, None, tile]], context=2)
    assert image.shape == (33, 16 * 3 + 2 + 4, 4)
    assert image[0, 0].tolist() == [7, 7, 7, 255] and image[16, 0, 3] == 0
    assert 0 < image[17, 0, 3] < 255 and image[17, -1].tolist() == [7, 7, 7, 255]


def test_columns_are_spread_evenly() -> None:
    assert even(32, 3) == [0, 16, 31] and even(2, 9) == [0, 1] and even(1, 3) == [0]


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_both_themes() -> None:
    css = (Path(report.__file__).parent / "page.html").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(themes) == 2
    for theme in themes:
        for name in ("ink", "muted", "floor", "good", "bad", *(f"series-{i}" for i in range(1, 7))):
            for behind in ("page", "card", "sunk"):
                light, dark = sorted((luminance(theme[name]), luminance(theme[behind])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {behind}: {theme[name]} on {theme[behind]}"


def test_a_missing_dataset_costs_the_pictures_only(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("tables", tmp_path / "tables")
    store.download_dir("protocols", tmp_path / "protocols")
    text = report.build(copy, [BLOCK]).read_text()
    assert "no pictures, since dataset mazes is not in this store" in text and 'class="claims"' in text
