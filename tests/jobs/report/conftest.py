"""What tests of reports share: a store that was scored."""

from __future__ import annotations

import pytest

from longtake.storage.store import Store
from tests.jobs.report.toy_store import make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Tests only read it."""
    return make_store(tmp_path_factory.mktemp("store"))
