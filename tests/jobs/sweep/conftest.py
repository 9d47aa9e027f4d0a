"""What tests of sweeps share: a folder with the configs and the dataset of a toy."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.storage.store import open_store
from tests.jobs.sweep.toy import SWEEP, TRAIN
from tests.jobs.toy_data import shaded_walks, write_dataset


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a store and the two configs."""
    store = open_store(tmp_path / "store")
    write_dataset(store, "mazes", shaded_walks(16), test=0.2)
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "sweep.yaml").write_text(SWEEP % (tmp_path / "train.yaml"))
    return tmp_path
