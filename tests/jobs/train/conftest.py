"""What tests of trainings share: a folder with a toy dataset and config, and a run of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.jobs.train import command as train
from longtake.storage.store import open_store
from tests.jobs.train.toy import config_of, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a dataset `mazes`, one without poses, and a config."""
    folder = tmp_path_factory.mktemp("train")
    write_place(folder)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> str:
    """A run of two steps."""
    return train.train(config_of(place, "steps=2", "seed=11"), open_store(place / "store"))
