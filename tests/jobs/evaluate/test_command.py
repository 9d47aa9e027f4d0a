"""`longtake evaluate`: a run is followed to its end, and what cannot be scored is named."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from longtake.datasets.shard import CorruptData
from longtake.grid import Cell, GridReport
from longtake.jobs.evaluate import command as evaluate
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.follow import follow
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.training import checkpoints
from tests.jobs.evaluate.toy import RETRIEVAL, RUN, STEP, plan


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
