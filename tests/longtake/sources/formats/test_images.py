"""Folders of pictures: their order is that of the numbers, and whatever leaves it open is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.errors import UserError
from tests.longtake.sources.formats import foreign_files as files
from tests.longtake.sources.formats.test_formats import episodes, good

T = 12


def walk(root: Path, name: str, seed: int = 0, beside: bool = True) -> None:
    """Pictures 0.png to 11.png, whose names sort otherwise than they follow."""
    for number, frame in enumerate(files.pictures(seed, T)):
        files.write(root / name / f"cam2_{number}.png", files.png(frame))
    npz = root / (f"{name}.npz" if beside else f"{name}/state.npz")
    files.write(npz, files.npz(actions=np.arange(T) + 1))


def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    walk(tmp_path, "a/one", 1)
    walk(tmp_path, "two", 2, beside=False)
    found = episodes("images", tmp_path, lead="out")
    for name, seed in (("a/one", 1), ("two", 2)):
        episode = good(found[name])
        np.testing.assert_array_equal(episode.frames, files.pictures(seed, T))
        np.testing.assert_array_equal(episode.actions, [-1, *range(1, T)])


def test_what_leaves_the_order_open_is_refused(tmp_path: Path) -> None:
    for name in ("gap", "twice", "nameless", "alone", "both", "mixed", "good"):
        walk(tmp_path, name)
    (tmp_path / "gap/cam2_5.png").unlink()
    files.write(tmp_path / "twice/cam1_5.png", files.png(files.pictures(0)[0]))
    files.write(tmp_path / "nameless/cover.png", files.png(files.pictures(0)[0]))
    (tmp_path / "alone.npz").unlink()
    files.write(tmp_path / "both/state.npz", files.npz(actions=np.zeros(T)))
    files.write(tmp_path / "mixed/cam2_3.png", files.png(files.pictures(0, size=8)[0]))
    found = episodes("images", tmp_path, lead="out")
    told = {
        "gap": "picture 5 is missing between gap/cam2_0.png and gap/cam2_11.png",
        "twice": "have the same number",
        "nameless": "nameless/cover.png: no number in its name",
        "alone": "no alone.npz beside it and no state.npz in it: no actions",
        "both": "both both.npz and both/state.npz: keep one",
        "mixed": "different sizes",
    }
    assert {name: told[name] in str(found[name]) for name in told} == dict.fromkeys(told, True), found
    good(found["good"])


def test_a_place_without_pictures_is_refused(tmp_path: Path) -> None:
    files.write(tmp_path / "flat.png", files.png(files.pictures(0)[0]))
    with pytest.raises(UserError, match="no folder with .png"):
        episodes("images", tmp_path, lead="out")
