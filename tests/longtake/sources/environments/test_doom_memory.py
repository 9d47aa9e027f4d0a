"""Controlled memory episodes: what is labelled is what is seen, and it is gone for exactly as long as asked."""

from __future__ import annotations

import numpy as np
import pytest

from longtake.datasets.episode import Episode, faults
from longtake.sources.environments.doom_memory import OBJECTS, DoomMemoryConfig, generate

pytest.importorskip("vizdoom")
pytestmark = pytest.mark.timeout(60)


def shown(episode: Episode) -> np.ndarray:
    """Where frames differ from the bare view, (T, H, W)."""
    bare = episode.frames[episode.labels["object"] == -1][0].astype(int)
    return np.abs(episode.frames - bare).sum(-1) > 40


def test_an_object_is_gone_for_exactly_as_long_as_asked() -> None:
    config = DoomMemoryConfig(away=23, look=3, resolution=(48, 48))
    episode = generate(config, 1)
    assert not faults(episode) and len(episode) == config.steps == 29
    visible = shown(episode).any((1, 2))
    np.testing.assert_array_equal(visible, episode.labels["object"] >= 0)
    np.testing.assert_array_equal(visible, [True] * 3 + [False] * 23 + [True] * 3)
    np.testing.assert_array_equal(episode.labels["gap"], [0] * 26 + [23, 0, 0])
    np.testing.assert_array_equal(episode.frames[2], episode.frames[26])
    np.testing.assert_array_equal(generate(config, 1).frames, episode.frames)


LOOKS = {
    "green pillar": lambda p: float((p[:, 1] > p[:, 0] + 20).mean()),
    "red pillar": lambda p: float((p[:, 0] > p[:, 1] + 40).mean()),
    "yellow lamp": lambda p: float((np.minimum(p[:, 0], p[:, 1]) - p[:, 2]).max() / 100),
    "grey column": lambda p: float((np.ptp(p, axis=1) < 25).mean()),
}
"""How much of an object (pixels, 3) is of its colour."""


def test_places_and_colours_are_those_in_the_picture() -> None:
    centres: dict[int, list[float]] = {0: [], 1: [], 2: []}
    colours: dict[str, list[float]] = {name: [] for name in OBJECTS}
    walls: dict[str, list[np.ndarray]] = {}
    for seed in range(14):
        episode = generate(DoomMemoryConfig(away=1, look=1, resolution=(48, 48)), seed)
        band = slice(21, 27)  # before the wall, where floor and ceiling do not differ by direction
        mask = shown(episode)[0, band]
        centres[int(episode.labels["place"][0])].append(float(np.median(np.argwhere(mask)[:, 1])))
        name = episode.meta["objects"][0]
        assert name == list(OBJECTS)[episode.labels["object"][0]]
        here = mask.any(0)
        lower = episode.frames[0, 22:36][:, here].reshape(-1, 3).astype(int)  # a lamp stands lower than the wall
        colours[name].append(LOOKS[name](lower if name == "yellow lamp" else episode.frames[0, band][mask].astype(int)))
        far = episode.frames[1, 21:25].reshape(-1, 3).astype(float).mean(0)  # the bare wall
        walls.setdefault(episode.meta["walls"], []).append(far / far.sum())
    assert all(centres.values())
    assert max(centres[0]) < 20 < min(centres[1]) and max(centres[1]) < 28 < min(centres[2])
    for name, found in colours.items():
        assert found and min(found) > 0.2, name
    assert len(walls) > 7 and max(float(np.ptp(found, axis=0).max()) for found in walls.values()) < 0.03
    assert walls["PRED"][0][0] > 0.9 and walls["PGREEN"][0].argmax() == 1 and np.ptp(walls["A-CONCTE"][0]) < 0.01


def test_an_object_may_be_gone_for_eight_hundred_frames() -> None:
    config = DoomMemoryConfig(away=800, look=1, resolution=(16, 16))
    episode = generate(config, 2)
    assert len(episode) == 802 and episode.labels["gap"].tolist() == [0] * 801 + [800]
    assert np.flatnonzero(episode.labels["object"] >= 0).tolist() == [0, 801]
    np.testing.assert_array_equal(episode.frames[0], episode.frames[801])
    assert (episode.frames[1:801] != episode.frames[0]).any((1, 2, 3)).all()


def test_several_objects_come_in_the_order_that_is_told() -> None:
    episode = generate(DoomMemoryConfig(objects=3, away=5, look=2, resolution=(48, 48)), 3)
    order = episode.labels["order"]
    np.testing.assert_array_equal(order, [0, 0, 1, 1, 2, 2, *[-1] * 5, 0, 0, 1, 1, 2, 2])
    visible = shown(episode).any((1, 2))
    np.testing.assert_array_equal(visible, order >= 0)
    kinds = [list(OBJECTS)[kind] for kind in episode.labels["object"][[0, 2, 4]]]
    assert kinds == episode.meta["objects"] and len(set(kinds)) == 3
    assert episode.labels["gap"][[11, 13, 15]].tolist() == [9, 9, 9]
