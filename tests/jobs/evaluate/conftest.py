"""What tests of evaluations share: a store with a dataset and a run."""

from __future__ import annotations

import pytest

from longtake.storage.store import Store, open_store
from tests.jobs.evaluate.toy import episodes, write_run
from tests.jobs.toy_data import write_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a dataset of twelve walks and a run; tests only add to it."""
    store = open_store(tmp_path_factory.mktemp("store"))
    write_dataset(store, "mazes", episodes(), test=0.5)
    write_run(store)
    return store
