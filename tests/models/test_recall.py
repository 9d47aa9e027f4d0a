"""Each mixer over time on planted associative recall: which gives back the last value of a key, and which a mixture."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.models.mixers import mixers
from tests.models.recall import KEYS, unexplained

pytestmark = pytest.mark.slow

OVERWRITES: dict[str, tuple[dict[str, Any], float, float]] = {
    "attention": ({}, 0.0, 0.1),
    "delta": ({"convolution": "none"}, 0.0, 0.1),
    # It adds: of three values per key it has a sum, whose older parts it cannot take away without all other keys.
    "ssm": ({}, 0.4, 1.0),
}
"""By mixer, its options and the range that its unexplained share lies in."""


def test_every_mixer_is_asked() -> None:
    assert set(OVERWRITES) == set(mixers())


@pytest.mark.parametrize("mixer", OVERWRITES)
def test_a_key_written_three_times(mixer: str) -> None:
    options, low, high = OVERWRITES[mixer]
    assert low <= unexplained(mixer, options, writes=3 * KEYS) <= high


@pytest.mark.parametrize("mixer", ["attention", "delta"])
def test_a_key_written_once(mixer: str) -> None:
    """The sum of `ssm` is not the reason alone: in these steps it does not learn to keep six keys apart either."""
    assert unexplained(mixer, OVERWRITES[mixer][0], writes=KEYS) <= 0.1
