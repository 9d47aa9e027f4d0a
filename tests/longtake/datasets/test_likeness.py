"""Episodes that look alike across the splits: what people do by accident is found, and worlds of one kind are not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from longtake.datasets import video
from longtake.datasets.likeness import Leak, leaks, look


def walk(seed: int, length: int = 60, size: int = 32) -> Any:
    """A window that moves over a smooth random picture."""
    rng = np.random.default_rng(seed)
    ground = gaussian_filter(rng.normal(size=(160, 160, 3)), (6, 6, 0), mode="wrap")
    ground = np.clip(128 + 45 * ground / ground.std(), 0, 255).astype(np.uint8)
    path = 60 + np.clip(np.cumsum(rng.integers(-1, 2, (length, 2)), axis=0), -60, 60)
    return np.stack([ground[y : y + size, x : x + size] for y, x in path])


OTHERS = [walk(seed) for seed in range(4, 14)]  # what is unusual is told from how unlike episodes are as a rule
SPLITS = "train val train test" + " train" * len(OTHERS)


def found(*episodes: Any, splits: str = "train val train test") -> list[Leak]:
    return leaks([look(frames) for frames in episodes], splits.split())


def test_worlds_of_one_kind_are_no_copies() -> None:
    episodes = [walk(seed) for seed in range(40)]
    assert found(*episodes, splits="train val train test " * 10) == []


def test_a_copy_that_was_encoded_again_is_found() -> None:
    buffer = io.BytesIO()
    video.write(buffer, walk(1), 10)
    again = video.read(io.BytesIO(buffer.getvalue())).frames
    assert found(walk(1), again, walk(2), walk(3), *OTHERS, splits=SPLITS) == [Leak(1, 0, "copy")]


@pytest.mark.parametrize("cut", [20, 30, 45])
def test_an_episode_that_was_cut_in_two_is_found(cut: int) -> None:
    whole = walk(1)
    assert found(whole[:cut], whole[cut:], walk(2), walk(3), *OTHERS, splits=SPLITS) == [Leak(1, 0, "continued")]
    assert found(whole[cut:], whole[:cut], walk(2), walk(3), *OTHERS, splits=SPLITS) == [Leak(1, 0, "continued")]


def test_between_held_out_splits_a_pair_is_told_once() -> None:
    whole = walk(1)
    assert found(walk(2), whole[:30], walk(3), whole[30:], *OTHERS, splits=SPLITS) == [Leak(1, 3, "continued")]


def test_within_a_split_nothing_leaks() -> None:
    assert found(walk(1), walk(2), walk(1), walk(3)) == []


def test_pictures_without_texture_say_nothing() -> None:
    black = np.zeros((20, 16, 16, 3), np.uint8)
    assert found(black, black + np.uint8(1), walk(1), black) == []


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 5, 3, 3), (3, 11, 64, 3)])
def test_short_and_small_episodes_have_a_look(shape: Any) -> None:
    one = look(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    assert one.pictures.shape == (384,) and one.pictures.dtype == np.uint8 and np.isfinite(one.step)


def test_ingest_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from longtake.jobs.datasets import shard_tasks
    from longtake.jobs.ingest import command as ingest
    from tests.longtake.sources.formats import foreign_files as files

    monkeypatch.setattr(shard_tasks, "make_shards", lambda label, make, shards, of, cpus: [make(s) for s in shards])
    for seed in range(5):
        whole = walk(seed)
        for part, frames in enumerate((whole[:30], whole[30:])):
            arrays = {"video": frames, "actions": np.arange(30) % 4}
            files.write(tmp_path / f"src/train/{seed}{part}.npz", files.npz(**arrays))
    ingest.main("teco", str(tmp_path / "src"), "cut", ["fps=10"], str(tmp_path / "store"))
    assert "looks like another part of the recording of episode" in capsys.readouterr().out
