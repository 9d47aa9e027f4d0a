"""Means and differences of scores: over episodes, paired, and never of unlike protocols."""

from collections.abc import Sequence

import pandas as pd
import pytest

from longtake.scores import paired_difference, summarise


def scores(a: Sequence[float], b: Sequence[float], protocols: tuple[str, str] = ("p", "p")) -> pd.DataFrame:
    rows = [
        {
            "system": name,
            "protocol": protocol,
            "episode": episode,
            "distance": distance,
            "metric": "psnr",
            "value": v,
        }
        for name, values, protocol in zip("ab", (a, b), protocols, strict=True)
        for episode, v in enumerate(values)
        for distance in (1, 9)
    ]
    return pd.DataFrame(rows).assign(task="retrieval", run="r", checkpoint=1)


def test_differences_are_paired_over_episodes() -> None:
    gap = paired_difference(scores([10, 20, 30, 41], [9, 19, 29, 39]), "a", "b", beyond=4)
    assert gap.mean == pytest.approx(1.25)
    assert 0 < gap.low < 1.25 < gap.high  # the spread between episodes does not count
    assert gap.episodes == 4


def test_unlike_protocols_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different protocols: p, q"):
        paired_difference(scores([1, 2], [1, 2], ("p", "q")), "a", "b")


def test_summary_is_over_episodes_not_frames() -> None:
    found = summarise(scores([10, 20], [5, 5]), beyond=4).set_index("system")
    assert found["mean"].to_dict() == {"a": 15, "b": 5}
    assert found.episodes.to_dict() == {"a": 2, "b": 2}
    assert found.low["a"] < 15 < found.high["a"]
    assert found.low["b"] == found.high["b"] == 5
