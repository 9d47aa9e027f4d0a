"""What a report claims, and the table beside it."""

from __future__ import annotations

import re

import pandas as pd

from longtake.jobs.report.claims import best_model, claims, reach, summary, verdict
from tests.jobs.report.toy_store import scores_of


def test_claims_tell_wins_losses_and_doubts() -> None:
    scores = scores_of({"a": 20, "b": 19, "a/wiped": 17, "b/wiped": 17, "copy_last": 19.97, "context_mean": 21})
    made = claims(scores, window=6)
    found = {claim.other: claim for claim in made}
    assert {other: claim.verdict for other, claim in found.items()} == {
        "itself with its memory wiped": "better",
        "b": "better",
        "copying the last frame": "undecided",
        "the mean of the context": "worse",
    }
    assert re.fullmatch(r"beats b by 0\.95 dB \(95\s% interval 0\.86 to 1\.05, n\s=\s24\)", found["b"].sentence)
    assert found["the mean of the context"].sentence.startswith("loses to the mean of the context by 0.")
    assert re.match(r"cannot be told apart from \w.*: [+\u2212]0\.\d\d dB", found["copying the last frame"].sentence)
    assert verdict(made, "retrieval", 6) == (
        "On retrieval, at distances beyond the 6 frames that windows reach, a beats itself with its memory wiped "
        "and b, loses to the mean of the context, and cannot be told apart from copying the last frame."
    )


def test_claims_use_all_distances_where_none_is_beyond_the_window() -> None:
    scores = scores_of({"a": 20, "copy_last": 17})
    assert reach(scores, 99) == 0 and reach(scores, 6) == 6
    assert verdict(claims(scores, 99), "retrieval", 0) == "On retrieval a beats copying the last frame."


def test_floors_alone_make_no_claim() -> None:
    assert claims(scores_of({"copy_last": 17, "context_mean": 21}), window=6) == []
    assert best_model(scores_of({"copy_last": 17}), 0) is None


def test_the_table_marks_the_best_model_not_the_best_floor() -> None:
    found = summary(scores_of({"a": 20, "b": 19, "context_mean": 25}), window=6)
    assert found.columns == [("PSNR (dB)", "all distances"), ("PSNR (dB)", "beyond 6 frames")]
    marks = {row.look.system: [bool(cell and cell.best) for cell in row.cells] for row in found.rows}
    assert marks == {
        "a": [True, True], "b": [False, False], "context_mean": [False, False],
    }  # fmt: skip


def test_the_table_knows_which_way_a_metric_points() -> None:
    means = {"lpips_vgg": {"a": 0.5, "b": 0.4}, "sharpness": {"a": -3, "b": 9}, "fvd": {"a": 300, "b": 290}}
    scores = pd.concat([scores_of(values, spread=0).assign(metric=metric) for metric, values in means.items()])
    of_clips = {"episode": -1, "frame": -1, "distance": 0, "clips": 24}
    sets = scores[scores.metric == "fvd"].drop_duplicates("system").assign(**of_clips)
    found = summary(pd.concat([scores[scores.metric != "fvd"], sets]), window=6)
    assert found.columns == [
        ("LPIPS (VGG16), lower is better", "all distances"),
        ("LPIPS (VGG16), lower is better", "beyond 6 frames"),
        ("Sharpness (dB), best at 0", "all distances"),
        ("Sharpness (dB), best at 0", "beyond 6 frames"),
        ("FVD, lower is better", "of 24 clips"),
    ]
    marks = {row.look.system: [bool(cell and cell.best) for cell in row.cells] for row in found.rows}
    assert marks == {"a": [False, False, True, True, False], "b": [True, True, False, False, True]}
    assert {row.episodes for row in found.rows} == {24}
    assert [row.cells[-1] and row.cells[-1].half for row in found.rows] == ["", ""]
