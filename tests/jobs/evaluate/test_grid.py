"""The grid of an evaluation: which cells a checkpoint has, and what their rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longtake.errors import UserError
from longtake.evals.baselines import CopyLast
from longtake.evals.controls import SwappedContext
from longtake.evals.protocol import Protocol
from longtake.evals.scoring import answer
from longtake.jobs.evaluate.cell import conditions_of, read_clip, score_cell
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint, ScoreCell
from longtake.jobs.evaluate.check import beyond_training
from longtake.jobs.evaluate.config import EvaluateConfig, limited
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.jobs.report.claims import of_memory, summary
from longtake.jobs.report.gather import gather
from longtake.jobs.results import command as results
from longtake.jobs.results import summary as results_summary
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from tests.jobs.evaluate.toy import REASONING, RETRIEVAL, RUN, STEP, plan, refused


def test_controls_are_planned_beside_the_model(store: Store) -> None:
    cells = plan(store, RETRIEVAL)
    controls = {"block_ssm", "block_ssm/wiped", "block_ssm/stranger"}
    assert {cell.system for cell in cells} == controls | {"copy_last", "context_mean", "nearest_pose"}
    strangers = [cell for cell in cells if cell.variant == "stranger"]
    assert [cell.strangers for cell in cells if cell.variant != "stranger"] == [()] * (5 * 2)
    asked = [episode for cell in strangers for episode in cell.episodes]
    shown = [episode for cell in strangers for episode in cell.strangers]
    assert shown == [*asked[1:], asked[0]]
    coarse = plan(store, RETRIEVAL, clips_per_cell=4)
    assert [cell.strangers for cell in coarse if cell.variant == "stranger"] == [tuple(shown)], "whatever the cells"
    assert {cell.system for cell in plan(store, RETRIEVAL, stranger=False)} == {c.system for c in cells} - {
        "block_ssm/stranger"
    }


def test_a_strangers_context_is_another_clips_under_own_conditions(store: Store) -> None:
    cell = next(cell for cell in plan(store, RETRIEVAL) if cell.variant == "stranger")
    own, other = ([read_clip(cell, episode) for episode in of] for of in (cell.episodes, cell.strangers))
    context = torch.from_numpy(np.stack([question.frames[:4] for question in other]))
    made = answer(SwappedContext(CopyLast(), context), cell.protocol, own, conditions_of(cell, own))
    assert np.array_equal(made[:, 0], context[:, -1].numpy())
    rows = {variant: pd.DataFrame(score_cell(cell_of(store, variant))) for variant in ("whole", "stranger", "wiped")}
    assert not rows["stranger"].value.equals(rows["whole"].value)
    assert not rows["stranger"].value.equals(rows["wiped"].value)
    assert rows["stranger"].system.unique().tolist() == ["block_ssm/stranger"]


def cell_of(store: Store, variant: str, protocol: Protocol = RETRIEVAL) -> ScoreCell:
    return next(cell for cell in plan(store, protocol) if cell.variant == variant and cell.run == RUN)


def test_each_model_is_asked_at_the_stride_of_its_training(store: Store) -> None:
    plain, coarse = (
        EvaluatedCheckpoint(RUN, name, STEP, "mazes", stride=stride) for name, stride in (("a", 1), ("b", 2))
    )
    config = EvaluateConfig(protocols=[RETRIEVAL], wiped=False, stranger=False)
    cells = [cell.payload for cell in plan_cells(config, store, [plain, coarse])]
    strides = {(cell.system, cell.protocol.stride) for cell in cells if cell.run == RUN}
    assert strides == {("a", None), ("b", 2)}
    floors = {cell.protocol.stride for cell in cells if cell.system == "copy_last"}
    assert floors == {None, 2}, "the floors of each"
    frames = read_clip(next(cell for cell in cells if cell.system == "b"), 0).frames
    assert np.array_equal(frames[:4], store.dataset("mazes").read(0, 0, 8).frames[::2])
    (line,) = refused(store, RETRIEVAL.model_copy(update={"stride": 2}), stranger=False)
    assert line == (
        f"retrieval.stride: 2, but block_ssm (run {RUN}) was trained with data.stride=1: leave it out, and each model "
        "has its own"
    )


def test_rows_say_how_far_they_lie_beyond_training(store: Store) -> None:
    """And no warning is repeated: what is an error in tests would be one here."""
    rows = score_cell(cell_of(store, "whole"))
    assert {row["beyond_training"] for row in rows} == {2}
    assert {row.get("beyond_training") for row in score_cell(plan(store, RETRIEVAL)[0])} == {None}
    (subject,) = find_subjects(store, RUN)
    told = beyond_training([RETRIEVAL, REASONING], [subject])
    assert told is not None and told.count("\n") == 0 and told.startswith("BEYOND TRAINING: block_ssm")
    assert "clips of 6 frames, reasoning asks for streams of 10" in told
    assert beyond_training([RETRIEVAL.model_copy(update={"context": 2, "horizon": 2})], [subject]) is None


def test_reasoning_tells_places_seen_from_places_not_seen(store: Store) -> None:
    """Three cells ahead in four frames, then back over them, then on: frames 4, 5, 6 were seen, 7 to 9 were not."""
    cells = [cell for cell in plan(store, REASONING) if cell.system in ("nearest_pose", "copy_last")]
    copy = open_store(Path(store.uri).parent / "reasoning")
    for cell in cells:
        tables.append(copy, "scores", score_cell(cell), part=cell.name(cell.share))
    rows = copy.table("scores")
    first = rows[rows.episode == rows.episode.min()].drop_duplicates("frame").sort_values("frame")
    assert first.stratum.tolist() == ["seen"] * 3 + ["unseen"] * 3
    assert first.distance.tolist() == [2, 4, 6, 4, 5, 6]
    found = results_summary.summary(rows)
    assert found[["system", "stratum", "episodes"]].values.tolist() == [
        ["copy_last", "seen", 4], ["copy_last", "unseen", 4],
        ["nearest_pose", "seen", 4], ["nearest_pose", "unseen", 4],
    ]  # fmt: skip
    assert [title for _, title in summary(rows, window=2).columns] == ["seen", "unseen"]
    assert set(of_memory(rows).stratum) == {"seen"}


def test_what_is_limited_stands_apart(store: Store, tmp_path: Path) -> None:
    config = limited(EvaluateConfig(protocols=[RETRIEVAL]), 2)
    assert config.protocols[0].hash != RETRIEVAL.hash and limited(config, None) is config
    assert limited(config, RETRIEVAL.episodes).protocols == config.protocols, "all of them are no look"
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    for chosen in (RETRIEVAL, config.protocols[0]):
        for cell in plan(copy, chosen):
            if cell.variant == "whole":
                body = cell.protocol.model_dump_json().encode()
                copy.write_bytes(f"protocols/{cell.protocol.hash}.json", body)
                tables.append(copy, "scores", score_cell(cell), part=cell.name(cell.share))
    found = results_summary.summary(copy.table("scores", where="system == 'block_ssm'"))
    assert found[["partial", "episodes"]].fillna(0).values.tolist() == [[2, 2], [0, 4]]
    material = gather(copy, [RUN])
    assert [task.scores.episode.nunique() for task in material.tasks] == [4]
    assert any("scores of 2 episodes only (--limit 2)" in note for note in material.notes)
    with pytest.raises(UserError, match=r"limit: (None|2) \(\w+\), (2|None)"):
        results.main("scores", copy.uri, plot=str(tmp_path / "x.png"))


def test_every_seed_is_a_row_of_its_own(store: Store) -> None:
    cells = plan(store, RETRIEVAL, REASONING, seeds=[3, 5, 3])
    once = plan(store, RETRIEVAL, REASONING)
    assert len(cells) == 2 * len(once)
    assert {(cell.protocol.task, cell.protocol.seed) for cell in cells} == {
        (task, seed) for task in ("retrieval", "reasoning") for seed in (3, 5)
    }
    assert len({cell.protocol.hash for cell in cells}) == 4
