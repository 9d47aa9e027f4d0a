"""Appending: old shards, numbers and splits stay; copies join their split; the dataset as it was stays readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.datasets.append import append
from longtake.datasets.dataset import Dataset
from longtake.datasets.episode import Episode
from longtake.datasets.verify import damage
from longtake.errors import UserError
from longtake.storage.store import open_store
from tests.longtake.datasets.test_dataset import episode, toy


def test_old_episodes_stay_and_new_ones_follow(tmp_path: Path) -> None:
    before = toy(open_store(tmp_path))
    shards = {path.name: path.read_bytes() for path in (tmp_path / "datasets/toy/shards").iterdir()}
    new = [episode(100 + n, 40) for n in range(30)]
    after = append(before, iter(new))
    assert after.fingerprint != before.fingerprint and after.manifest.episodes == 42
    np.testing.assert_array_equal(after.index["split"][:12], before.index["split"])
    for number, truth in enumerate(new, start=12):
        np.testing.assert_array_equal(after.read(number).frames, truth.frames)
    for name, data in shards.items():
        assert (tmp_path / "datasets/toy/shards" / name).read_bytes() == data
    assert list(damage(after)) == [] and sum(after.manifest.splits.values()) == 42
    assert after.statistics is not None
    trained = [after.read(int(n)).actions[1:] for n in after.episodes("train").episode]
    np.testing.assert_allclose(after.statistics["actions"].mean, np.concatenate(trained).mean(0), atol=1e-6)
    assert after.manifest.splits["train"] > 24, "the shares of the splits are kept, about"
    again = append(after, [episode(200, 30)])
    for old in (before, after):
        kept = Dataset(before.store, f"toy@{old.fingerprint}")
        assert kept.fingerprint == old.fingerprint and kept.index.equals(old.index)
        np.testing.assert_array_equal(kept.read(3).frames, old.read(3).frames)
    assert again.manifest.episodes == 43 and Dataset(before.store, "toy").fingerprint == again.fingerprint


def test_a_copy_goes_where_its_original_is(tmp_path: Path) -> None:
    before = toy(open_store(tmp_path))
    held = [int(n) for split in ("val", "test") for n in before.episodes(split).episode]
    copies = [before.read(number) for number in held]
    after = append(before, copies)
    assert after.index["split"].tolist()[12:] == [before.index["split"][number] for number in held]


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    before = toy(open_store(tmp_path))
    other = episode(7, 40)
    strange = Episode(other.frames[:, :, :4], other.actions, other.pose)
    for episodes, told in (([strange], r"these have actions .*frames"), ([], "no episode to append")):
        with pytest.raises(UserError, match=told):
            append(before, episodes)
        assert Dataset(before.store, "toy").fingerprint == before.fingerprint
    after = append(before, [other])
    with pytest.raises(UserError, match="not the newest version"):
        append(before, [other])
    with pytest.raises(UserError, match="dataset toy has no version 0123"):
        Dataset(after.store, "toy@0123")
