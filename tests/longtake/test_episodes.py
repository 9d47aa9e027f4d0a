"""Shards, index, manifest: what is written is what is read, and what is broken says where."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.episodes import CorruptData, Dataset, DatasetWriter, Episode, dataset_names, split_sizes
from longtake.errors import UserError
from longtake.store import Store, open_store


def episode(seed: int, length: int = 70, pose: bool = True) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length, 4, 5, 3), dtype=np.uint8)
    actions = rng.normal(size=(length, 2)).astype(np.float32)
    where = rng.normal(size=(length, 3)).astype(np.float32) if pose else None
    return Episode(frames, actions, where, {"seed": seed})


def writer(store: Store, name: str = "toy", **recipe: Any) -> DatasetWriter:
    return DatasetWriter(
        store, name, recipe=recipe, fps=9.0, action_space={"a": "any"}, pose=["x", "y", "yaw"], chunk=32
    )


def toy(store: Store, shards: int = 3, per_shard: int = 4) -> Dataset:
    making = writer(store)
    making.claim()
    for shard in reversed(range(shards)):
        making.write_shard(shard, [episode(shard * per_shard + i, 50 + 7 * i) for i in range(per_shard)])
    return making.finalize(shards)


def test_every_span_reads_back_bit_exactly(tmp_path: Path) -> None:
    data = toy(open_store(tmp_path))
    for number in range(12):
        truth = episode(number, 50 + 7 * (number % 4))
        for start, stop in ((0, len(truth)), (0, 1), (31, 33), (32, 50), (len(truth) - 1, len(truth))):
            piece = data.read(number, start, stop)
            assert piece.pose is not None and truth.pose is not None
            np.testing.assert_array_equal(piece.frames, truth.frames[start:stop])
            np.testing.assert_array_equal(piece.actions, truth.actions[start:stop])
            np.testing.assert_array_equal(piece.pose, truth.pose[start:stop])
            assert piece.meta == {"seed": number}


def test_a_clip_is_one_ranged_read_of_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(open_store(tmp_path))
    data.read(0, 0, 1)
    reads: list[int] = []
    read_range = data.store.read_range

    def spy(rel: str, offset: int, size: int) -> bytes:
        reads.append(size)
        return bytes(read_range(rel, offset, size))

    monkeypatch.setattr(data.store, "read_range", spy)
    data.read(0, 3, 20)
    data.read(0, 20, 40)
    assert len(reads) == 2 and reads[0] < reads[1]


def test_frames_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    data = toy(open_store(tmp_path))
    for start, stop in ((-1, 3), (0, 51), (5, 5)):
        with pytest.raises(IndexError):
            data.read(0, start, stop)


def test_manifest_tells_what_is_there(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    data = toy(store)
    told = {spec.name: (spec.dtype, spec.shape) for spec in data.manifest.arrays}
    assert told == {"actions": ("<f4", (2,)), "pose": ("<f4", (3,)), "frames": ("|u1", (4, 5, 3))}
    assert data.manifest.episodes == 12 and data.manifest.frames == data.index["length"].sum()
    assert (data.frame_shape, data.action_dim, data.has_pose) == ((4, 5, 3), 2, True)
    assert dataset_names(store) == ["toy"]


def test_a_dataset_without_pose(tmp_path: Path) -> None:
    making = writer(open_store(tmp_path))
    making.write_shard(0, [episode(i, pose=False) for i in range(3)])
    data = making.finalize(1)
    assert not data.has_pose and data.read(1, 0, 5).pose is None


def test_splits_partition_the_episodes_and_depend_on_their_bytes_only(tmp_path: Path) -> None:
    one, other = toy(open_store(tmp_path / "a")), toy(open_store(tmp_path / "b"), shards=6, per_shard=2)
    numbers = [set(one.episodes(split)["episode"]) for split in ("train", "val", "test")]
    assert all(numbers) and set().union(*numbers) == set(range(12)) and sum(map(len, numbers)) == 12
    assert len(one.episodes()) == 12
    same = one.index.merge(other.index, on="digest")
    assert len(same) > 0 and one.manifest.splits == other.manifest.splits
    with pytest.raises(UserError, match="did you mean train"):
        one.episodes("trian")


@given(st.integers(3, 5000), st.floats(0.01, 0.3), st.floats(0.01, 0.3))
def test_no_split_is_empty(episodes: int, val: float, test: float) -> None:
    sizes = split_sizes(episodes, val, test)
    assert min(sizes.values()) >= 1 and sum(sizes.values()) == episodes


@pytest.mark.parametrize("episodes", [1, 2])
def test_too_few_episodes_for_three_splits(episodes: int) -> None:
    with pytest.raises(UserError, match="too few.*at least 3"):
        split_sizes(episodes, 0.1, 0.1)


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, same = toy(open_store(tmp_path / "a")), toy(open_store(tmp_path / "b"))
    making = writer(open_store(tmp_path / "c"))
    for shard in range(3):
        making.write_shard(shard, [episode(100 + shard * 4 + i) for i in range(4)])
    assert one.fingerprint == same.fingerprint != making.finalize(3).fingerprint


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    data = toy(open_store(tmp_path))
    path = tmp_path / "datasets/toy/shards/00001.shard"
    raw = bytearray(path.read_bytes())
    raw[int(data.index["frames_offset"][5][1]) + 3] ^= 1
    path.write_bytes(bytes(raw))
    data.read(5, 0, 32)
    with pytest.raises(CorruptData, match=r"00001\.shard: episode 5, frames, chunk 1"):
        data.read(5, 30, 40)


def test_a_truncated_and_a_lost_shard(tmp_path: Path) -> None:
    data = toy(open_store(tmp_path))
    path = tmp_path / "datasets/toy/shards/00002.shard"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptData, match="episode 11"):
        data.read(11)
    path.unlink()
    with pytest.raises(CorruptData, match="gone"):
        data.read(8)


def test_claim_refuses_another_recipe_by_field(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert not writer(store, seed=1, source={"cells": 4}).claim()
    assert not writer(store, seed=1, source={"cells": 4}).claim()
    with pytest.raises(UserError, match=r"source\.cells: 4 then, 5 now"):
        writer(store, seed=1, source={"cells": 5}).claim()


def test_shards_of_another_recipe_are_not_done(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer(store, seed=1).write_shard(0, [episode(0)])
    assert writer(store, seed=1).done(0)
    assert not writer(store, seed=2).done(0) and not writer(store, seed=1).done(1)


def test_a_dataset_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    toy(store)
    with pytest.raises(UserError, match="did you mean toy"):
        Dataset(store, "tyo")


def test_pickles_small(tmp_path: Path) -> None:
    data = toy(open_store(tmp_path))
    packed = pickle.dumps(data)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).read(3, 0, 9).frames, data.read(3, 0, 9).frames)
