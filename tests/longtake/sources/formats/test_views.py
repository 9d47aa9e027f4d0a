"""Several cameras side by side: of one moment, each framed by itself, and what one of them lacks is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.config import build
from longtake.errors import UserError
from longtake.jobs.ingest import command as ingest
from longtake.sources.formats.base import Refused
from longtake.storage.store import open_store
from tests.longtake.sources.formats import foreign_files as files

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
T = 8


def config(path: Path, kind: str, field: str, values: list[str], **more: Any) -> ingest.IngestConfig:
    settings = {"name": "toy", "path": str(path), "source": {"kind": kind}, "views": {"field": field, "values": values}}
    return build(ingest.IngestConfig, {**settings, **more})


def test_two_cameras_of_a_lerobot_dataset(tmp_path: Path) -> None:
    files.lerobot(tmp_path)
    told = config(tmp_path, "lerobot", "camera", [FRONT, WRIST])
    place, job = open_store(tmp_path), ingest.prepare(told)
    assert job.schema["frames"][1] == (files.SIZE, 2 * files.SIZE, 3)
    for number, item in enumerate(job.listing.items):
        episode = ingest._read(told, place, item)
        wide = episode.frames
        np.testing.assert_array_equal(wide[:, :, files.SIZE :], files.pictures(number, len(wide)))
        assert np.abs(wide[:, :, : files.SIZE].astype(int) - files.calm(number, len(wide))).max() <= 2
        np.testing.assert_array_equal(episode.actions[1:, 0], np.arange(len(wide) - 1))
        assert episode.meta["views"] == [FRONT, WRIST]


def robots(path: Path) -> None:
    """Three groups: whole, without a second camera, and with one that is a frame longer."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "r.h5", "w") as file:
        for number in range(3):
            file[f"{number}/actions"] = np.ones((T, 2))
            file[f"{number}/a"] = files.pictures(number, T)
            if number != 1:
                file[f"{number}/b"] = files.pictures(9 + number, T + (number == 2), size=2 * files.SIZE)


def test_views_of_unlike_sizes_are_framed_first(tmp_path: Path) -> None:
    robots(tmp_path)
    place = open_store(tmp_path)
    told = config(tmp_path, "hdf5", "frames", ["a", "b"], framing={"resize": [8, 6]}, fps=10.0)
    job = ingest.prepare(told)
    assert job.schema["frames"][1] == (8, 12, 3)
    assert job.listing.refused == {"r.h5/1": "no view b"}
    whole, short = job.listing.items
    assert ingest._read(told, place, whole).frames.shape == (T, 8, 12, 3)
    with pytest.raises(Refused, match="view b: 9 frames"):
        ingest._read(told, place, short)
    plain = config(tmp_path, "hdf5", "frames", ["a", "b"], fps=10.0)
    with pytest.raises(UserError) as caught:
        ingest.prepare(plain)
    assert "pixels high" in str(caught.value) and "set framing.resize" in str(caught.value)


def test_a_setting_that_the_format_lacks_is_told(tmp_path: Path) -> None:
    files.lerobot(tmp_path)
    with pytest.raises(UserError, match=r"views\.field: unknown setting 'camra' \(did you mean camera\?\)"):
        ingest.prepare(config(tmp_path, "lerobot", "camra", [FRONT, WRIST]))
    assert (
        "views"
        not in build(ingest.IngestConfig, {"name": "toy", "path": "x", "source": {"kind": "lerobot"}}).model_dump()
    ), "datasets of before keep their recipe"
