"""The maze source: same seed, same bytes; actions lead into their frames; mazes hang together."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longtake.sources.environments import doom_maze, doom_textures
from longtake.sources.environments.doom_maze import DoomMazeConfig, Grid, Walker, generate, maze, open_squares, textmap
from longtake.sources.resize import shrink

vizdoom = pytest.importorskip("vizdoom")


@settings(deadline=None)
@given(st.integers(2, 8), st.floats(0, 1), st.integers(0, 99))
def test_every_square_is_reached(cells: int, braid: float, seed: int) -> None:
    grid = maze(cells, braid, random.Random(seed))
    squares = open_squares(grid)
    walker = Walker(grid, DoomMazeConfig(), random.Random(0))
    assert len(doom_maze.paths_to(walker.grid, squares[0])) == len(squares) - 1
    assert not grid[0].any() and not grid[-1].any() and not grid[:, 0].any() and not grid[:, -1].any()


def loops(grid: Grid) -> int:
    edges = (grid[1:] & grid[:-1]).sum() + (grid[:, 1:] & grid[:, :-1]).sum()
    return int(edges - grid.sum() + 1)


def test_braid_makes_loops() -> None:
    assert loops(maze(5, 0.0, random.Random(1))) == 0
    assert loops(maze(5, 1.0, random.Random(1))) == 16


def test_options_change_the_map() -> None:
    grid = maze(3, 0.2, random.Random(0))
    plain = textmap(grid, DoomMazeConfig(vary_floor=False, vary_light=False, wall_textures=1), random.Random(0))
    rich = textmap(grid, DoomMazeConfig(), random.Random(0))
    assert len(set(plain.split("lightlevel=")[1:])) < len(set(rich.split("lightlevel=")[1:]))
    assert plain.count("sector{") == rich.count("sector{") == 49
    assert textmap(grid, DoomMazeConfig(texture_region=7), random.Random(0)).count("sector{") == 1
    assert all(len(set(names)) >= 24 for names in doom_textures.WALLS.values())


def test_shrink_is_an_exact_area_average() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    blocks = image.reshape(4, 3, 4, 3, 3).astype(float).mean((1, 3))
    assert np.abs(shrink(image, (4, 4)) - blocks).max() <= 0.5
    assert (shrink(np.full((120, 120, 3), 77, np.uint8), (32, 32)) == 77).all()


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"cells": 1}, {"resolution": (4000, 4000)}, {"braid": 2.0}, {"colour": "red"}):
        with pytest.raises(ValidationError):
            DoomMazeConfig(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def config() -> DoomMazeConfig:
    return DoomMazeConfig(cells=3, steps=96)


@pytest.mark.timeout(60)
def test_the_same_seed_gives_the_same_bytes(
    config: DoomMazeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, same, other = generate(config, 5), generate(config, 5), generate(config, 6)
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, same.arrays()[name])
    assert (one.frames != other.frames).any()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)
def test_actions_lead_into_their_frames(config: DoomMazeConfig) -> None:
    episode = generate(config, 7)
    assert episode.frames.shape == (96, 32, 32, 3) and episode.frames.dtype == np.uint8
    assert episode.pose is not None and episode.pose.dtype == episode.actions.dtype == np.float32
    assert (episode.actions[0] == 0).all()
    turned = np.diff(episode.pose[:, 2])
    turned = (turned + np.pi) % (2 * np.pi) - np.pi
    asked = episode.actions[1:, 1] * np.radians(config.turn_degrees)
    np.testing.assert_allclose(turned, asked, atol=1e-3)
    moved = np.hypot(*np.diff(episode.pose[:, :2], axis=0).T)
    walking = episode.actions[1:, 0] > 0
    assert moved[walking].mean() > 1.3 * moved[~walking].mean()


@pytest.mark.timeout(60)
def test_the_walker_stays_in_the_maze_and_sees_much(config: DoomMazeConfig) -> None:
    episode = generate(config, 8)
    assert episode.pose is not None
    grid = maze(config.cells, config.braid, random.Random(8))
    x, y = episode.pose[:, :2].astype(int).T
    assert grid[y, x].all()
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) > 8
    assert 40 < episode.frames.mean() < 200 and episode.frames.std() > 30


@pytest.mark.timeout(60)
def test_two_walks_of_a_maze_see_the_same_maze(config: DoomMazeConfig) -> None:
    """Where they stand in nearly one pose they see nearly one picture; in another maze they do not."""
    config = config.model_copy(update={"steps": 256})
    first, second, other = generate(config, 8), generate(config, 8, 1), generate(config, 9, 1)
    for name, array in generate(config, 8, 1).arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name])
    a, b, elsewhere = (episode.pose for episode in (first, second, other))
    assert a is not None and b is not None and elsewhere is not None
    assert np.abs(a[:20] - b[:20]).max() > 0.5, "they begin in different places or go different ways"
    gap = np.linalg.norm(a[:, None, :2] - b[:, :2], axis=-1) + np.abs(np.sin((a[:, None, 2] - b[:, 2]) / 2))
    near = np.argwhere(gap < 0.12)
    assert len(near) >= 5, "both come by the same places"
    errors = [np.abs(first.frames[i].astype(int) - second.frames[j]).mean() for i, j in near]
    strange = [np.abs(first.frames[i].astype(int) - other.frames[j]).mean() for i, j in near]
    assert np.median(errors) < 0.6 * np.median(strange) and min(errors) < 5 < min(strange)


def test_another_start_is_another_player_and_nothing_else() -> None:
    grid = maze(3, 0.2, random.Random(0))
    text = textmap(grid, DoomMazeConfig(), random.Random(0))
    moved = [doom_maze._begun_elsewhere(text, grid, random.Random(seed)).split("\n") for seed in range(40)]
    kept = [line for line in text.split("\n") if not line.startswith(doom_maze.PLAYER)]
    assert all(lines[:-1] == kept and lines[-1].startswith(doom_maze.PLAYER) for lines in moved)
    starts = {line.partition("x=")[2].partition("angle")[0] for *_, line in moved}
    landmarks = {line.partition("x=")[2].partition("angle")[0] for line in kept if line.startswith("thing{")}
    assert len(starts) > 8 and not starts & landmarks and landmarks
