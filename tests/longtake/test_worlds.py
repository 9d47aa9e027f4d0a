"""Walks in one world: found by what metadata say, whatever else other people's metadata say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.datasets import worlds
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.storage.store import open_store


def dataset(place: Path, metas: list[dict[str, Any]], lengths: list[int] | None = None) -> Dataset:
    about: dict[str, Any] = {"recipe": {}, "fps": 10.0, "action_space": {"turn": "degrees"}, "pose": None}
    writer, draw = DatasetWriter(open_store(place), "d", **about, val=0.2, test=0.4), np.random.default_rng(0)
    episodes = [
        Episode(draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), np.zeros((n, 1), np.float32), None, meta)
        for meta, n in zip(metas, lengths or [4] * len(metas), strict=True)
    ]
    writer.write_shard(0, episodes)
    return writer.finalize(1)


def test_walks_lie_in_any_order_and_number(tmp_path: Path) -> None:
    """Twenty worlds of one to three walks, scattered over the index, some longer than others."""
    draw = np.random.default_rng(1)
    pairs = [(world, walk) for world in range(20) for walk in range(1 + world % 3)]
    pairs = [pairs[i] for i in draw.permutation(len(pairs))]
    lengths = [4 + world % 2 + walk for world, walk in pairs]
    data = dataset(tmp_path, [{"world": {"maze": world}, "walk": walk} for world, walk in pairs], lengths)
    split = dict(zip(data.index.episode, data.index.split, strict=True))
    where: dict[int, set[str]] = {}
    for episode, (world, _) in enumerate(pairs):
        where.setdefault(world, set()).add(split[episode])
    assert all(len(splits) == 1 for splits in where.values())
    assert [sum(splits == {name} for splits in where.values()) for name in ("train", "val", "test")] == [8, 4, 8]
    for count in (1, 2, 3):
        for name in ("train", "val", "test"):
            found = worlds.walks(data, name, count)
            told = [[pairs[episode] for episode in walks] for walks in found.walks]
            expected = {world for world, splits in where.items() if splits == {name} and 1 + world % 3 >= count}
            assert {walks[0][0] for walks in told} == expected and len(told) == len(expected)
            assert all(walks == [(walks[0][0], number) for number in range(count)] for walks in told)
            assert found.episode.tolist() == [walks[-1] for walks in found.walks]
            assert found.length.tolist() == [4 + walks[0][0] % 2 for walks in told]


@pytest.mark.parametrize(
    "meta", [{}, {"world": "kitchen"}, {"walk": 0}, {"world": 1, "walk": "first"}, {"wraps": ["a"], "world": 2}]
)
def test_what_is_no_walk_is_an_episode_by_itself(tmp_path: Path, meta: dict[str, Any]) -> None:
    data = dataset(tmp_path, [meta] * 10)
    assert data.manifest.splits == {"train": 4, "val": 2, "test": 4}
    assert data.manifest.split_rule.startswith("episodes in the order")
    assert worlds.walks(data, "train", 1).empty and worlds.wraps(data) is None


def test_worlds_go_round_after_the_same_number_of_cells(tmp_path: Path) -> None:
    assert worlds.wraps(dataset(tmp_path / "a", [{"wraps": 8}] * 5)) == 8.0
    with pytest.raises(UserError, match="dataset d: its worlds repeat after different numbers of cells: 4.0, 8.0"):
        worlds.wraps(dataset(tmp_path / "b", [{"wraps": 8}, {"wraps": 4}] * 4))
