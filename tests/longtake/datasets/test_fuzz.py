"""A seeded sample of spoiled files of every format: an error of ours or the right sample. All of them: make fuzz."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.sources.formats import formats
from tests.longtake.datasets import fuzz

CASES = 40  # of each kind


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_spoiled_files_give_an_error_or_the_right_sample(kind: str, tmp_path: Path) -> None:
    assert fuzz.run(kind, tmp_path, CASES, seed=1).whole < CASES


def test_no_format_is_left_out() -> None:
    assert set(formats()) == {kind.split()[0] for kind in fuzz.KINDS} - {"shards", "video"}
