"""Shards, index, manifest: what is written is what is read, and what is broken says where."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.datasets.dataset import CorruptData, Dataset, dataset_names
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter, copies, split_sizes
from longtake.errors import UserError
from longtake.storage.store import Store, open_store


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


@given(st.lists(st.integers(3, 9), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_equal_episodes_lie_in_one_split(repeated: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        making = writer(open_store(folder))
        making.write_shard(0, [episode(seed, 4) for seed in [0, 1, 2, *repeated]])
        data = making.finalize(1)
    assert (data.index.groupby("digest")["split"].nunique() == 1).all()
    assert all(data.manifest.splits.values())
    assert copies(data) == len(repeated) - len(set(repeated))


def test_too_few_unlike_episodes_are_refused(tmp_path: Path) -> None:
    making = writer(open_store(tmp_path))
    making.write_shard(0, [episode(seed, 4) for seed in [0, 1, 1, 0, 1, 0]])
    with pytest.raises(UserError, match="too few"):
        making.finalize(1)


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


# --- labels, discrete actions, codecs -----------------------------------------------------------------------


def smooth(seed: int, length: int = 70) -> Episode:
    """Pictures that a video codec can do something with: a blurred noise that drifts."""
    world = np.random.default_rng(seed).integers(40, 216, (8, 8, 3)).astype(np.float64)
    fine = np.kron(world, np.ones((8, 8, 1)))
    fine = sum(np.roll(fine, (a, b), (0, 1)) for a in range(8) for b in range(8)) / 64
    frames = np.stack([np.roll(fine, t, 1)[:32, :31] for t in range(length)]).astype(np.uint8)
    return Episode(frames, np.arange(length, dtype=np.int64) % 5 - 1, None, {"seed": seed})


def make(store: Store, episodes: list[Episode], **options: Any) -> Dataset:
    making = DatasetWriter(store, "toy", recipe={}, fps=9.0, action_space={"a": "any"}, pose=None, **options)
    making.claim()
    making.write_shard(0, episodes)
    return making.finalize(1)


def test_labels_are_kept_and_read_where_asked_for(tmp_path: Path) -> None:
    labels = {"reward": np.linspace(0, 1, 70), "room": np.arange(70), "map": np.ones((70, 3, 3), bool)}
    labels["reward"][3] = np.nan
    data = make(open_store(tmp_path), [Episode(**{**vars(episode(i)), "labels": labels}) for i in range(3)])
    assert data.read(1, 2, 40).labels == {}
    there = data.read(1, 2, 40, labels=True).labels
    assert list(there) == list(labels)
    for name, label in labels.items():
        np.testing.assert_array_equal(there[name], label[2:40])


@pytest.mark.parametrize("declared", [None, 7])
def test_discrete_actions_become_one_hot_and_none_becomes_zeros(tmp_path: Path, declared: int | None) -> None:
    data = make(open_store(tmp_path), [smooth(i) for i in range(3)], action_classes=declared)
    actions = data.read(0, 0, 6).actions
    assert actions.tolist() == [-1, 0, 1, 2, 3, -1] and data.action_dim == (declared or 4)
    vectors = data.action_vectors(actions)
    assert vectors.dtype == np.float32 and vectors[[0, 5]].sum() == 0
    np.testing.assert_array_equal(vectors[1:5], np.eye(4, declared or 4))
    with pytest.raises(UserError, match="action_classes: 3, but the episodes hold action 3"):
        make(open_store(tmp_path / "b"), [smooth(i) for i in range(3)], action_classes=3)


def test_zlib_is_lossless(tmp_path: Path) -> None:
    data = make(open_store(tmp_path), [smooth(i) for i in range(3)], codec="zlib")
    np.testing.assert_array_equal(data.read(2, 20, 50).frames, smooth(2).frames[20:50])
    assert [spec.codec for spec in data.manifest.arrays] == ["zstd", "zlib"] and data.manifest.psnr_db is None


def test_video_says_what_it_cost_and_reads_the_same_from_any_frame(tmp_path: Path) -> None:
    data = make(open_store(tmp_path), [smooth(i) for i in range(3)], codec="video", crf=12)
    whole, truth = data.read(1).frames, smooth(1).frames
    for start, stop in ((0, 1), (31, 33), (40, 64), (69, 70)):
        np.testing.assert_array_equal(data.read(1, start, stop).frames, whole[start:stop])
    error = np.mean([np.mean((data.read(i).frames.astype(float) - smooth(i).frames) ** 2) for i in range(3)])
    assert data.manifest.psnr_db == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert data.manifest.psnr_db > 40 and data.manifest.bytes < 0.1 * truth.nbytes * 3
    nearest = [int(np.abs(truth.astype(int) - frame).sum((1, 2, 3)).argmin()) for frame in whole]
    assert nearest == [t % 64 for t in range(70)]


def test_what_video_cannot_hold_and_codecs_that_do_not_exist(tmp_path: Path) -> None:
    latents = Episode(np.zeros((9, 4, 4, 8), np.float16), np.zeros((9, 1), np.float32))
    with pytest.raises(ValueError, match="codec video: frames are float16"):
        make(open_store(tmp_path), [latents], codec="video")
    with pytest.raises(UserError, match="did you mean zstd"):
        make(open_store(tmp_path / "b"), [], codec="zsdt")


# --- what is no episode -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"actions": np.zeros((69, 2), np.float32)}, "actions: 69 long, frames are 70"),
        ({"actions": np.zeros(70, np.int32)}, "actions: int32"),
        ({"actions": np.full(70, -2)}, "actions: -2"),
        ({"actions": np.full((70, 2), np.nan, np.float32)}, "actions: NaN or infinite at frame 0"),
        ({"pose": np.zeros((70, 3))}, "pose: float64"),
        ({"pose": np.where(np.arange(210) == 9, np.nan, 0).reshape(70, 3).astype("f4")}, "pose: NaN.*at frame 3"),
        ({"frames": np.zeros((70, 4, 5), np.uint8)}, r"expected \(T, H, W, 3\)"),
        ({"frames": np.zeros((70, 4, 5, 3), np.int32)}, "frames: int32"),
        ({"frames": np.zeros((0, 4, 5, 3), np.uint8)}, "frames: none"),
        ({"labels": {"word": np.array(["a"] * 70)}}, "label word"),
        ({"labels": {"one": np.float64(3)}}, "a single number"),
    ],
)
def test_what_is_no_episode_is_not_written(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    making = writer(open_store(tmp_path))
    with pytest.raises(ValueError, match=told):
        making.write_shard(0, [Episode(**{**vars(episode(0)), **change})])
    assert not making.done(0)


@pytest.mark.parametrize("name", ["index.parquet", "manifest.json"])
def test_a_damaged_index_or_manifest_is_named(tmp_path: Path, name: str) -> None:
    toy(open_store(tmp_path))
    path = tmp_path / "datasets/toy" / name
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"fps": 9.0', b'"fps": 8.0') if name == "manifest.json" else raw[:40] + raw[41:])
    with pytest.raises(UserError, match=f"{name}: damaged"):
        Dataset(open_store(tmp_path), "toy")
