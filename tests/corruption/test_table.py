"""No rot of any file of a store is read as truth, ends in a trace or hangs. `make corrupt`: twenty mutations a kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.storage import lease
from tests.corruption.base import Base
from tests.corruption.table import FAULTS, run

MUTATIONS = int(os.environ.get("LONGTAKE_MUTATIONS", "3"))
ONLY = os.environ.get("LONGTAKE_MUTATED", "")
"""Kinds whose name holds this, for whoever mends one."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 * MUTATIONS)]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease's holder that is silent is watched for a second."""
    monkeypatch.setattr(lease, "SILENCE_S", 1.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.1)


def test_rot_in_a_folder_is_named(base: Base, tmp_path: Path) -> None:
    total = run(base, str(tmp_path / "copy"), MUTATIONS, ONLY)
    print(f"{total.total()} mutations: {dict(total)}")
    assert total.total() >= (0 if ONLY else 40 * MUTATIONS) and not set(total) & set(FAULTS)


@pytest.mark.skipif("LONGTAKE_MUTATIONS" not in os.environ, reason="takes more than five minutes: by `make corrupt`")
def test_rot_in_a_bucket_is_named(base: Base, bucket: str) -> None:
    total = run(base, f"{bucket}/corrupt", MUTATIONS, ONLY)
    print(f"{total.total()} mutations: {dict(total)}")
    assert not set(total) & set(FAULTS)
