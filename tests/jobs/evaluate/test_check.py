"""What is told before an evaluation starts: what a model, a dataset or a task lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate.cell import read_model, score_cell
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import fewer_episodes, find_subjects, plan_cells
from longtake.models.config import SamplerConfig
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from tests.jobs.evaluate.toy import LENGTH, REASONING, RETRIEVAL, RUN, STEP, episodes, plan, refused, write_run
from tests.jobs.toy_data import write_dataset


def test_what_a_model_cannot_be_asked_is_told_before_the_start(store: Store) -> None:
    (subject,) = find_subjects(store, RUN)
    chunked = EvaluatedCheckpoint(RUN, "blocks", STEP, "mazes", chunk=3)
    assert refused(store, RETRIEVAL, subject=chunked) == [
        f"retrieval.context: 4 is no multiple of 3, the frames that blocks (run {RUN}) takes at a time (model.chunk); "
        "the nearest one is 3"
    ]
    assert plan(store, RETRIEVAL.model_copy(update={"context": 6}), subject=chunked)
    assert (subject.chunk, subject.trained_frames, subject.latents) == (1, 6, False)
    assert refused(store, RETRIEVAL.model_copy(update={"episodes": 1})) == [
        "retrieval.episodes: a stranger's context needs 2 at least, or set stranger: false"
    ]


def test_a_score_on_training_data_is_refused(store: Store) -> None:
    mazes = store.dataset("mazes")
    learned = [mazes.read(int(episode)) for episode in mazes.episodes("train").episode]
    write_dataset(store, "other", learned[:3], test=0.3)
    (line,) = refused(store, RETRIEVAL.model_copy(update={"episodes": 1}), dataset="other", stranger=False)
    assert f"block_ssm (run {RUN}) was trained on 1 of the episodes of other that would be asked" in line
    assert line.endswith("ask of mazes instead")


def test_what_a_dataset_lacks_is_named(store: Store) -> None:
    write_dataset(store, "blind", episodes(6, pose=False), test=0.6)
    lines = refused(store, RETRIEVAL, REASONING, dataset="blind")
    assert lines == [
        "retrieval: dataset blind has no pose; a way back cannot be told by actions alone",
        "reasoning: dataset blind has no pose; places seen cannot be told from places not seen",
    ]
    rollout = RETRIEVAL.model_copy(update={"task": "rollout"})
    assert "nearest_pose" not in {cell.system for cell in plan(store, rollout, dataset="blind")}
    (line,) = refused(store, REASONING.model_copy(update={"horizon": 9}))
    assert "needs 13 frames of an episode (start 0, context 4, horizon 9)" in line
    assert "the shortest, episode " in line and line.endswith(f"has {LENGTH}")


def test_questions_are_asked_of_all_clips_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    marked = [replace(episode, labels={"room": np.arange(LENGTH) // 6}) for episode in episodes(24)]
    write_dataset(store, "mazes", marked, test=0.5)
    write_run(store)
    protocol = Protocol(task="questions", context=6, horizon=2, episodes=12)
    cells = plan(store, protocol)
    systems = ["chance", "raw_frames", "block_ssm", "block_ssm/wiped", "block_ssm/stranger"]
    assert [cell.system for cell in cells] == systems and {len(cell.episodes) for cell in cells} == {12}
    rows = {cell.system: pd.DataFrame(score_cell(cell)) for cell in cells}
    assert all(len(found) == 24 and set(found.distance) == {6, 5} for found in rows.values())
    assert rows["block_ssm/wiped"].value.tolist() == rows["chance"].value.tolist()
    assert rows["block_ssm"].beyond_training.unique().tolist() == [0]
    room = plan(store, protocol.model_copy(update={"label": "room"}))
    assert pd.DataFrame(score_cell(room[0])).value.mean() == 1, "all clips are in the first room"
    (line,) = refused(store, protocol.model_copy(update={"label": "rom"}))
    assert line == "questions.label: unknown label of mazes 'rom' (did you mean room?); there are: room, warmth"


def looks_again(episode: Episode, thing: int) -> Episode:
    """An episode with a bright thing in its first and last two frames, turned to the wall between."""
    visible = np.array([True, True, *[False] * (LENGTH - 4), True, True])
    frames = np.full_like(episode.frames, 100)
    frames[visible, 4:10, 1 + 5 * thing : 5 + 5 * thing] = (250, 20, 250)
    pose = np.zeros((LENGTH, 3), np.float32)
    pose[~visible, 2] = np.pi
    labels = {"object": np.where(visible, thing, -1), "place": np.where(visible, 0, -1)}
    assert episode.pose is not None
    return Episode(frames, episode.pose[:, :2], pose, {}, labels)  # equal episodes would lie in one split


def test_permanence_is_planned_with_its_chance_and_told_what_it_lacks(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    written = [looks_again(episode, number % 3) for number, episode in enumerate(episodes(12))]
    write_dataset(store, "mazes", written, test=0.5)
    write_run(store)
    sampler = SamplerConfig(steps=1)
    protocol = Protocol(task="permanence", context=10, gone=8, horizon=2, episodes=6, sampler=sampler)
    cells = plan(store, protocol)
    floors = ["copy_last", "context_mean", "nearest_pose/stranger", "nearest_pose"]
    assert [cell.system for cell in cells] == [*floors, "block_ssm", "block_ssm/wiped", "block_ssm/stranger"]
    assert [cell.variant for cell in cells][:4] == ["whole", "whole", "stranger", "whole"]
    found = {cell.system: pd.DataFrame(score_cell(cell)).groupby("metric").value.mean() for cell in cells}
    assert found["nearest_pose"].to_dict() == {"there": 1, "place": 1, "colour": 1, "object_psnr": 100}
    assert found["copy_last"]["there"] == 0 and found["nearest_pose/stranger"]["there"] == 1
    assert found["nearest_pose/stranger"]["colour"] < 1
    (line,) = refused(store, protocol.model_copy(update={"gone": 7}))
    assert "cannot be asked: nothing is to be seen in frame 2 of its first look" in line
    write_dataset(store, "bare", episodes(12), test=0.5)
    assert refused(store, protocol, dataset="bare") == [
        "permanence: unknown label of bare 'object'; there are: none yet",
        "permanence: unknown label of bare 'place'; there are: none yet",
    ]


def test_a_checkpoint_without_its_config_is_named(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    with checkpoints.writing(copy, RUN, STEP + 1) as folder:
        (folder / "config.json").write_text("{}")
    checkpoints.seal(copy, RUN, STEP + 1, 1, {})
    with pytest.raises(UserError, match=f"run {RUN}: .*config.json is damaged: holds no model, expected"):
        find_subjects(copy, RUN)
    with checkpoints.writing(copy, RUN, STEP + 2) as folder:
        (folder / "model.safetensors").write_text("")
    checkpoints.seal(copy, RUN, STEP + 2, 1, {})
    with pytest.raises(UserError, match=f"the checkpoint of step {STEP + 2} has no config"):
        find_subjects(copy, RUN)


def test_weights_with_zeros_in_them_are_named_and_not_scored(store: Store, tmp_path: Path) -> None:
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    where = f"{checkpoints.folder(RUN, STEP)}/model.safetensors"
    weights = bytearray((tmp_path / where).read_bytes())
    weights[-400:] = bytes(400)
    (tmp_path / where).write_bytes(weights)
    with pytest.raises(UserError, match=f"{where}: damaged, its SHA-256 .*: move .* away"):
        find_subjects(copy, RUN)
    with pytest.raises(UserError, match=f"{where}: damaged"):
        read_model(copy.uri, RUN, STEP)


def test_fields_of_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="seen_within: rollout has no such field; it is of reasoning"):
        Protocol(task="rollout", seen_within=2.0)
    with pytest.raises(ValueError, match="'reasoning' or 'retrieval'"):
        Protocol(task="reasonin")
    plain, near = Protocol(task="reasoning"), Protocol(task="reasoning", seen_within=0.1)
    assert plain.hash != near.hash
    assert Protocol.model_validate_json(near.model_dump_json()) == near
    assert "seen_within" not in Protocol(task="rollout").model_dump()


def test_shipped_evaluations_can_be_read() -> None:
    from longtake.config import load

    for path in evaluate_config.CONFIGS.glob("*.yaml"):
        assert load(EvaluateConfig, path.stem, [], search=evaluate_config.CONFIGS).protocols


def test_all_episodes_are_taken_where_there_are_fewer_than_asked_for(store: Store) -> None:
    many = RETRIEVAL.model_copy(update={"episodes": 99})
    config = EvaluateConfig.model_validate({"protocols": [many, REASONING]})
    cells = plan_cells(config, store, find_subjects(store, RUN))
    there = len(store.dataset("mazes").episodes("test"))
    protocols = {cell.payload.protocol.task: cell.payload.protocol for cell in cells}
    assert protocols["retrieval"].episodes == there < 99 and protocols["reasoning"].episodes == REASONING.episodes
    assert protocols["retrieval"].hash != many.hash
    (note,) = fewer_episodes(config, cells)
    assert note.startswith(f"retrieval: split test of mazes has {there} episodes, fewer than asked for: all of them")
    assert not list(fewer_episodes(EvaluateConfig(protocols=[REASONING]), [c for c in cells if "reason" in c.part]))
