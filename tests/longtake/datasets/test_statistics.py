"""Statistics of a dataset: exact against all of its numbers at once, of the training split alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.episode import Episode
from longtake.datasets.mixture import Mixture
from longtake.datasets.statistics import DISTANCE, between_quantiles, merged, of_episode, pooled, standard
from longtake.datasets.writer import DatasetWriter
from longtake.storage.store import open_store


def episode(seed: int, length: int, scale: float = 1.0, offset: float = 0.0) -> Episode:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8)
    actions = (offset + scale * rng.normal(size=(length, 2))).astype(np.float32)
    actions[0] = 0
    state = rng.normal(size=(length, 3)).astype(np.float32)
    place = rng.normal(size=(length, 2)).astype(np.float32)
    return Episode(frames, actions, place, {"task": f"go {seed % 2}"}, {"state": state})


def written(folder: Path, name: str, episodes: list[Episode]) -> DatasetWriter:
    store = open_store(folder)
    writer = DatasetWriter(store, name, recipe={}, fps=5, action_space={"a": "m/s"}, pose=["x", "y"], pose_kind="place")
    for shard, part in enumerate((episodes[:3], episodes[3:])):
        writer.write_shard(shard, part)
    writer.finalize(2)
    return writer


def test_they_are_those_of_all_frames_that_are_trained_on(tmp_path: Path) -> None:
    written(tmp_path, "toy", [episode(n, 20 + 3 * n, offset=1e4, scale=1e-1) for n in range(8)])
    data = open_store(tmp_path).dataset("toy")
    train = [data.read(int(n), labels=True) for n in data.episodes("train").episode]
    actions = np.concatenate([one.actions[1:] for one in train]).astype(np.float64)
    assert data.statistics is not None
    found = data.statistics["actions"]
    np.testing.assert_allclose(found.mean, actions.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, actions.std(0), rtol=1e-9)
    np.testing.assert_array_equal([found.least, found.largest], [actions.min(0), actions.max(0)])
    assert found.frames == len(actions) == sum(len(one) - 1 for one in train), "null actions are none"
    state = np.concatenate([one.labels["state"] for one in train]).astype(np.float64)
    np.testing.assert_allclose(data.statistics["label.state"].std, state.std(0), rtol=1e-9)
    far = np.concatenate([np.linalg.norm(one.pose - one.pose[0], axis=1) for one in train if one.pose is not None])
    np.testing.assert_allclose(data.statistics[DISTANCE].largest, far.max(), rtol=1e-6)
    assert data.pose_kind == "place" and data.tasks == ("go 0", "go 1") and data.task_of(0) in data.tasks


def test_scales_undo_units_and_leave_constants_alone() -> None:
    parts = [of_episode(episode(n, 60, scale=3.0, offset=7.0), "place") for n in range(5)]
    found = merged(parts)["actions"]
    actions = np.concatenate([episode(n, 60, scale=3.0, offset=7.0).actions[1:] for n in range(5)])
    offset, scale = standard(found)
    np.testing.assert_allclose(((actions - offset) / scale).std(0), 1, rtol=1e-6)
    middle, half = between_quantiles(found)
    inside = np.abs((actions - middle) / half) <= 1
    assert 0.96 <= inside.mean() <= 0.99, "1 % and 99 % lie at -1 and 1"
    still = episode(0, 30)
    still.actions[:] = 0.1
    assert standard(merged([of_episode(still, None)])["actions"])[1] == (1.0, 1.0), "rounding is no spread"


def test_those_of_two_datasets_are_those_of_their_union(tmp_path: Path) -> None:
    one, other = ([episode(n + 10 * k, 30 + k, offset=5.0 * k) for n in range(6)] for k in (1, 2))
    first, second = merged(of_episode(e, "place") for e in one), merged(of_episode(e, "place") for e in other)
    together, truth = pooled([first, second]), merged(of_episode(e, "place") for e in [*one, *other])
    assert together is not None and set(together) == set(truth)
    for name in truth:
        np.testing.assert_allclose(together[name].mean, truth[name].mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(together[name].std, truth[name].std, rtol=1e-9)
    assert pooled([first, None]) is None
    for name, episodes in (("a", one), ("b", other)):
        written(tmp_path, name, episodes)
    mixed = Mixture([open_store(tmp_path).dataset(name) for name in "ab"], (1, 1))
    assert mixed.statistics is not None and mixed.statistics["actions"].frames == sum(
        open_store(tmp_path).dataset(name).statistics["actions"].frames  # type: ignore[index]
        for name in "ab"
    )


def test_manifests_of_before_are_read_as_they_were_sealed(tmp_path: Path) -> None:
    """What was not written is not in the checksum: a dataset without statistics stays whole."""
    written(tmp_path, "toy", [episode(n, 20) for n in range(6)])
    manifest = open_store(tmp_path).dataset("toy").manifest
    old = manifest.model_copy(update={"statistics": None, "pose_kind": None, "tasks": ()}).sealed()
    text = old.model_dump_json()
    assert not {"statistics", "pose_kind", "tasks"} & set(old.model_dump())
    store = open_store(tmp_path)
    store.write_bytes("datasets/toy/manifest.json", text.encode())
    again = open_store(tmp_path).dataset("toy")
    assert again.statistics is None and again.pose_kind == "planar" and again.tasks == ()


def test_a_pose_of_another_kind_is_never_written(tmp_path: Path) -> None:
    writer = DatasetWriter(open_store(tmp_path), "toy", recipe={}, fps=5, action_space={}, pose=["x"], pose_kind="se3")
    with pytest.raises(ValueError, match=r"a se3 pose is \(T, 7\)"):
        writer.write_shard(0, [episode(0, 10)])
