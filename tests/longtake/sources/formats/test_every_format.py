"""The contract of a format, for every one that is registered: what `longtake ingest` counts on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.config import Config
from longtake.datasets.episode import Episode, faults
from longtake.errors import UserError
from longtake.motion import NULL_ACTION
from longtake.sources.formats import formats, modules
from longtake.sources.formats.base import Format, Framing, attempt
from longtake.storage.store import open_store
from tests.longtake.sources.formats import foreign_files as files


def mazes(path: Path) -> None:
    for seed in range(2):
        files.write(path / f"{seed}.npz", files.npz(**files.memory_maze(seed)))


def teco(path: Path) -> None:
    for seed in range(2):
        files.write(path / f"train/0/{seed}.npz", files.npz(**files.teco(seed)))


def folder(path: Path) -> None:
    for seed in range(2):
        files.mp4(path / f"{seed}.mp4", files.pictures(seed))
        files.write(path / f"{seed}.npz", files.npz(**files.states(seed)))


def tars(path: Path) -> None:
    files.tar(path / "a.tar", {str(n): files.webdataset_sample(n) for n in range(2)})


def images(path: Path) -> None:
    for seed in range(2):
        for number, frame in enumerate(files.pictures(seed)):
            files.write(path / f"{seed}/{number}.png", files.png(frame))
        files.write(path / f"{seed}.npz", files.npz(**files.states(seed)))


def hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for seed in range(2):
        with h5py.File(path / f"{seed}.h5", "w") as file:
            file["e/observations"] = files.pictures(seed)
            file["e/actions"] = files.states(seed)["actions"]


Sample = tuple[Callable[[Path], None], dict[str, Any]]
SAMPLES: dict[str, Sample] = {
    "memory-maze": (mazes, {}),
    "teco": (teco, {}),
    "folder": (folder, {"lead": "into"}),
    "webdataset": (tars, {"lead": "out"}),
    "images": (images, {"lead": "into"}),
    "hdf5": (hdf5, {}),
    "lerobot": (files.lerobot, {"camera": "observation.images.front"}),
}
"""A source of at least two good episodes, and what its config has to say of it."""


def test_every_format_has_a_sample() -> None:
    assert SAMPLES.keys() == formats().keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_a_format_of_its_own_name_with_a_card(name: str) -> None:
    keeps_its_name(name, SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_episodes_are_listed_and_read_the_same_every_time(name: str, tmp_path: Path) -> None:
    reads_the_same_every_time(name, SAMPLES[name], tmp_path)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_place_that_holds_none_is_refused_as_a_whole(name: str, tmp_path: Path) -> None:
    refuses_an_empty_place(name, SAMPLES[name], tmp_path)


@pytest.mark.parametrize("name", SAMPLES)
def test_it_goes_to_workers(name: str, tmp_path: Path) -> None:
    goes_to_workers(name, SAMPLES[name], tmp_path)


def configured(name: str, sample: Sample) -> tuple[Format, Config]:
    format_ = formats()[name]
    return format_, format_.config(**sample[1])


def keeps_its_name(name: str, sample: Sample) -> None:
    """The config's `kind` is the name under which it is found, and its file's docstring is a card."""
    format_, config = configured(name, sample)
    assert isinstance(format_, Format) and config.model_dump()["kind"] == name
    assert len((modules()[name].__doc__ or "").strip()) > 20


def reads_the_same_every_time(name: str, sample: Sample, path: Path) -> None:
    """Episodes without faults, whose first action is the null action, and a pose where one is announced."""
    format_, config = configured(name, sample)
    sample[0](path)
    found: list[list[Episode]] = []
    place = open_store(path)
    for _ in range(2):
        listing = format_.listing(config, place)
        found.append([attempt(lambda i=item: format_.read(config, place, i), Framing()) for item in listing.items])  # type: ignore[misc]
        assert len(listing.items) >= 2 and all(item.size > 0 for item in listing.items)
        assert len({item.key for item in listing.items}) == len(listing.items) and listing.action_space
    for episode, again in zip(*found, strict=True):
        assert not faults(episode) and episode.meta["source"]
        assert (episode.actions[0] == (NULL_ACTION if episode.actions.ndim == 1 else 0)).all()
        assert (episode.pose.shape[1] if episode.pose is not None else None) == (listing.pose and len(listing.pose))
        assert episode.meta == again.meta and episode.arrays().keys() == again.arrays().keys()
        for array, other in zip(episode.arrays().values(), again.arrays().values(), strict=True):
            np.testing.assert_array_equal(array, other)


def refuses_an_empty_place(name: str, sample: Sample, path: Path) -> None:
    """With a UserError: nothing is looked for in vain by every worker."""
    format_, config = configured(name, sample)
    with pytest.raises(UserError):
        format_.listing(config, open_store(path))


def goes_to_workers(name: str, sample: Sample, path: Path) -> None:
    """Its config and what it listed are all that a worker is told."""
    format_, config = configured(name, sample)
    sample[0](path)
    item = format_.listing(config, open_store(path)).items[0]
    there, told = pickle.loads(pickle.dumps((config, item)))
    again = formats()[name].read(there, open_store(path), told)
    np.testing.assert_array_equal(again.actions, format_.read(config, open_store(path), item).actions)
