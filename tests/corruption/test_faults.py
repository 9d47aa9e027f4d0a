"""One failing call of the file system at a time, in every verb: an error that names it, and nothing is lost.

`make corrupt` fails every one of them; here it is some of each verb.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.corruption.base import Base
from tests.corruption.faults import VERBS, run
from tests.corruption.table import FAULTS, Copy

STRIDE = 1 if os.environ.get("LONGTAKE_MUTATIONS") else 17

pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000 // STRIDE)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_that_fails_is_named_and_loses_nothing(verb: str, base: Base, tmp_path: Path) -> None:
    copy = Copy(base, str(tmp_path / "copy"))
    (tmp_path / "truth").mkdir()
    total = run(base, copy, verb, tmp_path, STRIDE)
    assert total.total() and not set(total) & {*FAULTS, "LOST"}
