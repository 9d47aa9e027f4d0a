"""No file of a store, nothing that was printed and no page holds a secret of the environment that all was made in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.jobs.runs import command as runs
from tests.corruption.base import Base
from tests.corruption.conftest import PLANTED

pytestmark = pytest.mark.slow


def test_no_secret_is_in_any_file(base: Base, capfd: pytest.CaptureFixture[str]) -> None:
    assert all(os.environ[name] == value for name, value in PLANTED.items())
    runs.main(str(base.store), base.run)
    printed = "".join(capfd.readouterr())
    assert base.run in printed
    files = [path for path in base.folder.rglob("*") if path.is_file()]
    assert len(files) > 60
    texts = {"what is printed": printed.encode(), **{str(path): Path(path).read_bytes() for path in files}}
    found = [(name, secret) for name, text in texts.items() for secret in PLANTED.values() if secret.encode() in text]
    assert not found
