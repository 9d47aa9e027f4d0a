"""What an evaluation plans, refuses before it starts, and writes into its rows."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from longtake.datasets.episode import Episode
from longtake.datasets.shard import CorruptData
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.evals.baselines import CopyLast
from longtake.evals.controls import SwappedContext
from longtake.evals.protocol import Protocol
from longtake.evals.scoring import answer
from longtake.grid import Cell, GridReport
from longtake.jobs.evaluate import command as evaluate
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate.cell import conditions_of, read_clip, read_model, score_cell
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint, ScoreCell
from longtake.jobs.evaluate.check import beyond_training
from longtake.jobs.evaluate.config import EvaluateConfig, limited
from longtake.jobs.evaluate.follow import follow
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.jobs.report.claims import of_memory, summary
from longtake.jobs.report.gather import gather
from longtake.jobs.results import command as results
from longtake.jobs.results import summary as results_summary
from longtake.models.config import ModelConfig, SamplerConfig
from longtake.models.world_model import WorldModel
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.training import checkpoints

RUN, STEP, LENGTH = "20261121-041233-k3f9", 30, 12
SAMPLER = SamplerConfig(steps=1)
RETRIEVAL = Protocol(task="retrieval", context=4, horizon=4, episodes=4, sampler=SAMPLER, metrics=["psnr"])
REASONING = RETRIEVAL.model_copy(update={"task": "reasoning", "horizon": 6})


def write_dataset(store: Store, name: str, episodes: list[Episode], pose: bool = True, **about: float) -> None:
    names = ["x", "y", "yaw"] if pose else None
    writer = DatasetWriter(store, name, recipe={}, fps=10.0, action_space={"turn": "degrees"}, pose=names, **about)
    writer.write_shard(0, episodes)
    writer.finalize(1)


def episodes(count: int = 12, pose: bool = True) -> list[Episode]:
    """Walks of three cells ahead and back again, and on."""
    draw, made = np.random.default_rng(0), []
    for _ in range(count):
        ahead = np.abs(np.arange(LENGTH) - 3.0) + draw.normal(0, 0.01, LENGTH)
        walk = np.stack([ahead, np.zeros(LENGTH), np.zeros(LENGTH)], 1).astype(np.float32)
        frames = draw.integers(0, 256, (LENGTH, 16, 16, 3), dtype=np.uint8)
        made.append(Episode(frames, np.zeros((LENGTH, 2), np.float32), walk if pose else None))
    return made


def write_run(store: Store, trained_frames: int = 6, mixer: str = "ssm") -> None:
    """A checkpoint of random weights."""
    layers = [{"mixer": mixer, "spatial_block": [1, 1]}, {"mixer": mixer, "spatial_block": [1, 1]}]
    told = {"height": 16, "width": 16, "patch": 8, "dim": 16, "heads": 2, "d_state": 8, "headdim": 8, "window": 2}
    config = ModelConfig.model_validate_json(json.dumps(told | {"layers": layers}))
    row = {"run": RUN, "kind": "train", "name": "block_ssm", "status": "done", "dataset_name": "mazes", "config": "{}"}
    tables.append(store, "runs", [row], part=RUN)
    torch.manual_seed(0)
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in WorldModel(config).state_dict().items()}
    with checkpoints.writing(store, RUN, STEP) as folder:
        save_file(weights, folder / "model.safetensors")
        written = {"model": config.model_dump(mode="json"), "trained_frames": trained_frames, "tokenizer": "pixels"}
        (folder / "config.json").write_text(json.dumps(written))
    checkpoints.seal(store, RUN, STEP, 1, {})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a dataset of twelve walks and a run; tests only add to it."""
    store = open_store(tmp_path_factory.mktemp("store"))
    write_dataset(store, "mazes", episodes(), test=0.5)
    write_run(store)
    return store


def plan(
    store: Store, *protocols: Protocol, subject: EvaluatedCheckpoint | None = None, **more: object
) -> list[ScoreCell]:
    config = EvaluateConfig.model_validate({"protocols": list(protocols), "clips_per_cell": 2, **more})
    return [cell.payload for cell in plan_cells(config, store, [subject] if subject else find_subjects(store, RUN))]


def refused(store: Store, *protocols: Protocol, **more: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        plan(store, *protocols, **more)
    return list(caught.value.lines)


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
    made = answer(SwappedContext(CopyLast(), context), cell.protocol, own, conditions_of(own))
    assert np.array_equal(made[:, 0], context[:, -1].numpy())
    rows = {variant: pd.DataFrame(score_cell(cell_of(store, variant))) for variant in ("whole", "stranger", "wiped")}
    assert not rows["stranger"].value.equals(rows["whole"].value)
    assert not rows["stranger"].value.equals(rows["wiped"].value)
    assert rows["stranger"].system.unique().tolist() == ["block_ssm/stranger"]


def cell_of(store: Store, variant: str, protocol: Protocol = RETRIEVAL) -> ScoreCell:
    return next(cell for cell in plan(store, protocol) if cell.variant == variant and cell.run == RUN)


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


class Training:
    """A run that writes two more checkpoints, prunes one before its turn, and ends, while it is followed."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder, self.scored = store, folder, list[int]()
        self.say("running")

    def say(self, status: str) -> None:
        row = {"run": RUN, "kind": "train", "name": "block_ssm", "status": status, "dataset_name": "mazes"}
        tables.append(self.store, "runs", [row | {"config": "{}"}], part=RUN)

    def copy(self, step: int) -> None:
        with checkpoints.opened(self.store, RUN, STEP) as there, checkpoints.writing(self.store, RUN, step) as folder:
            shutil.copytree(there, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(checkpoints.MARKER))
        checkpoints.seal(self.store, RUN, step, 1, {})

    def at(self, step: int) -> Path:
        return self.folder / checkpoints.folder(RUN, step)

    def work(self, cells: Sequence[Cell], store: Store) -> GridReport:
        """In place of the grid: what happens beside the scoring of each checkpoint."""
        (step,) = {cell.payload.step for cell in cells if cell.payload.run == RUN}
        self.scored.append(step)
        if step == STEP:
            self.copy(40)
            self.copy(50)
        if step == 40:
            shutil.rmtree(self.at(40))
            return GridReport(failed={"x": "FileNotFoundError: gone"})
        if step == 50:
            self.say("done")
            return GridReport(ran=1, failed={"y": "CorruptData: shard 3"})
        return GridReport(ran=len(cells))


def test_a_run_is_followed_until_it_ends(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    training = Training(copy, tmp_path)
    monkeypatch.setattr("longtake.cluster.launch.launch", contextlib.nullcontext)
    failed = follow(EvaluateConfig(protocols=[RETRIEVAL]), copy, RUN, poll_s=0.01, work=training.work)
    assert training.scored == [STEP, 40, 50]
    assert failed == ["y"], "a checkpoint that was pruned is no failure; a damaged shard is"
    told = capsys.readouterr().out
    assert "the checkpoint of step 40 was pruned before it was scored" in told
    assert f"{RUN} step {STEP}: " in told and told.count("BEYOND TRAINING") == 1


def test_a_damaged_episode_is_named_and_the_exit_code_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The grid, which is tested elsewhere, records what a cell raises and goes on; here it runs in this process."""
    copy = open_store(tmp_path)
    store.download_dir("", tmp_path)
    shard = tmp_path / "datasets" / "mazes" / "shards" / "00000.shard"
    broken = plan(copy, RETRIEVAL)[0].episodes[0]
    offset = int(copy.dataset("mazes").index.frames_offset[broken][0])
    data = bytearray(shard.read_bytes())
    data[offset : offset + 8] = b"damaged!"
    shard.write_bytes(data)

    def in_turn(store: Store, table: str, cells: Sequence[Cell], work: Any, on_done: Any) -> GridReport:
        report = GridReport()
        for cell in cells:
            try:
                tables.append(store, table, work(cell.payload), part=cell.part)
                report.ran += 1
            except CorruptData as error:
                report.failed[cell.part] = f"CorruptData: {error}"
        return report

    monkeypatch.setattr("longtake.jobs.evaluate.grid.run_grid", in_turn)
    monkeypatch.setattr("longtake.cluster.launch.launch", contextlib.nullcontext)
    (tmp_path / "mine.yaml").write_text(f"clips_per_cell: 2\nprotocols: [{RETRIEVAL.model_dump_json()}]\n")
    with pytest.raises(SystemExit) as left:
        evaluate.main(str(tmp_path / "mine.yaml"), ["stranger=false"], copy.uri, False, RUN, None)
    assert left.value.code == 1
    told = capsys.readouterr().out
    assert f"episode {broken}, frames" in told and told.count("failed: ") == 5
    assert copy.table("scores").episode.nunique() == 2, "the other cell was scored"
