"""Pictures and films of a report: the frames that were scored, the best models, nothing enlarged in silence."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longtake.datasets import video
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.report import command as report
from longtake.jobs.report.film import EDGE_PX, SCREEN, SHOWN, make_film
from longtake.jobs.report.gather import gather
from longtake.jobs.report.strips import even, generate, make_strips, mosaic, pick_episodes, pick_models, show, shrunk
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from tests.jobs.report.toy_store import BLOCK, STEP, WINDOW, scores_of


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


def test_episodes_are_picked_by_rule() -> None:
    scores = scores_of({"a": 20, "copy_last": 17})
    assert list(pick_episodes(scores, 6).values()) == ["a hard one", "a middling one", "an easy one"]
    assert pick_episodes(scores, 6) == pick_episodes(scores.sample(frac=1, random_state=0), 6)
    assert len(pick_episodes(scores_of({"a": 20}, episodes=2), 6)) == 2


def test_a_mosaic_keeps_pixels_and_marks_what_was_forgotten() -> None:
    tile = np.full((16, 16, 3), 7, np.uint8)
    image = mosaic([[tile, tile, tile], [None, None, tile]], context=2)
    assert image.shape == (33, 16 * 3 + 2 + 4, 4)
    assert image[0, 0].tolist() == [7, 7, 7, 255] and image[16, 0, 3] == 0
    assert 0 < image[17, 0, 3] < 255 and image[17, -1].tolist() == [7, 7, 7, 255]


def test_columns_are_spread_evenly() -> None:
    assert even(32, 3) == [0, 16, 31] and even(2, 9) == [0, 1] and even(1, 3) == [0]


def test_a_missing_dataset_costs_the_pictures_only(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("tables", tmp_path / "tables")
    store.download_dir("protocols", tmp_path / "protocols")
    text = Path(report.build(copy, [BLOCK])).read_text()
    assert "no pictures, since dataset mazes is not in this store" in text and 'class="claims"' in text
