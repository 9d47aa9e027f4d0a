"""What docs/adding-a-task.md tells people to write works: a task in one file, a model in another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longtake.config import load
from longtake.datasets.episode import Episode
from longtake.errors import UserError
from longtake.evals.metrics.psnr import IDENTICAL_PSNR
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import plan_cells
from longtake.jobs.results.memory_horizons import table
from longtake.storage.store import Store, open_store
from tests.jobs.how_to import blocks, run
from tests.jobs.toy_data import write_dataset

AGAIN, FADE, MODEL = blocks("adding-a-task.md", "python")
ASK_TASK, ASK_MODEL = blocks("adding-a-task.md", "yaml")
ASK = """
import json
import pandas as pd
from pydantic import ValidationError
from longtake.evals.protocol import Protocol
from longtake.jobs.cli import main
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import plan_cells
from longtake.jobs.report.gather import report_place
from longtake.storage.store import open_store
from longtake.config import load
from tests.evals import test_every_task as contract

for task in ("again", "fade"):
    contract.test_it_has_the_face(task)
contract.test_the_truth_is_the_ceiling_and_the_last_frame_the_floor("again")

config = load(EvaluateConfig, "mine.yaml", search=".").model_copy(update={"dataset": "doom-maze", "stranger": False})
cells = [cell.payload for cell in plan_cells(config, open_store("store"), [])]
rows = pd.DataFrame([row for cell in cells for row in score_cell(cell)])
rows.to_json("rows.json", orient="records")

problems = []
for task, more in ("rollout", {"first": 8}), ("again", {"first": -1}), ("again", {"metrics": ["brightness"]}):
    try:
        Protocol.model_validate({"task": task, **more})
    except ValidationError as error:
        problems += [str(error)]
hashes = [Protocol(task="again", first=first).hash for first in (0, 0, 1)]
told = {"ranks": [report_place(task).rank for task in ("again", "fade")], "problems": problems, "hashes": hashes}
print(json.dumps(told), flush=True)
main(["tasks", "again"])
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Walks of 32 frames, and the files of the how-to in the folder where we are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate_config, "CONFIGS", tmp_path)
    (tmp_path / "freeze.py").write_text(MODEL)
    store, draw = open_store(tmp_path / "store"), np.random.default_rng(0)
    walk = np.stack([np.arange(32.0), np.zeros(32), np.zeros(32)], 1).astype(np.float32)
    frames = draw.integers(0, 256, (12, 32, 16, 16, 3), dtype=np.uint8)
    episodes = [Episode(clip, np.zeros((32, 2), np.float32), walk) for clip in frames]
    write_dataset(store, "doom-maze", episodes, test=0.5)
    return store


def cells(store: Store, text: str, **more: object) -> list[ScoreCell]:
    Path("mine.yaml").write_text(text.replace("episodes: 48", "episodes: 6, metrics: [psnr]"))
    config = load(EvaluateConfig, Path("mine.yaml"), [], search=Path.cwd())
    return [cell.payload for cell in plan_cells(config.model_copy(update=more), store, [])]


def scored(asked: list[ScoreCell]) -> pd.DataFrame:
    return pd.DataFrame([row for cell in asked for row in score_cell(cell)])


@pytest.mark.slow
def test_a_task_is_one_file(store: Store, tmp_path: Path) -> None:
    """With fields and metrics of its own, and its place in a report: nothing else is edited."""
    fade = "\n  - {task: fade, context: 8, horizon: 4, episodes: 48}"
    Path("mine.yaml").write_text((ASK_TASK.rstrip() + fade).replace("episodes: 48", "episodes: 6"))
    told, card = run(tmp_path, "longtake.evals.tasks", {"again": AGAIN, "fade": FADE}, ASK).split("\n", 1)
    rows = pd.read_json(tmp_path / "rows.json")
    again, fade_rows = rows[(rows.task == "again") & (rows.metric == "psnr")], rows[rows.task == "fade"]
    assert set(again.system) == {"copy_last", "context_mean", "nearest_pose"} and set(again.distance) == {24}
    assert (again[again.system == "nearest_pose"].value == IDENTICAL_PSNR).all()
    assert set(fade_rows.metric) == {"brightness"}
    assert fade_rows[fade_rows.system == "copy_last"].value.tolist() == pytest.approx([1.0] * 24)
    found = json.loads(told)
    assert found["ranks"] == [2, 9] and len(set(found["hashes"])) == 2
    assert "first: rollout has no such field; it is of again" in found["problems"][0]
    assert "first\n  Input should be greater than or equal to 0" in found["problems"][1]
    assert "metrics: again has no brightness; it has psnr" in found["problems"][2]
    assert card.startswith("Again: cut back into the context")


def test_a_foreign_model_is_one_file(store: Store) -> None:
    asked = cells(store, ASK_MODEL)
    names = {"freeze", "freeze/wiped", "freeze/stranger", "copy_last", "context_mean", "nearest_pose"}
    assert {cell.system for cell in asked} == names
    rows = scored(asked)
    own = rows[rows.system == "freeze"].groupby("distance").value.min()
    assert (own[own.index < 16] == IDENTICAL_PSNR).all() and own[17] < 20, "it knows the last eight frames"
    for control in ("wiped", "stranger"):
        assert rows[rows.system == f"freeze/{control}"].value.max() < 20
    (line,) = table(rows).to_dict("records")
    assert (line["system"], line["horizon"], line["run"]) == ("freeze", 16, asked[-1].run)
    assert re.fullmatch(r"foreign-[0-9a-f]{8}", asked[-1].run)
    Path("freeze.py").write_text(MODEL + "# another\n")
    assert cells(store, ASK_MODEL)[-1].run != asked[-1].run, "what has changed is scored anew"


def test_what_is_no_model_is_told(store: Store) -> None:
    wrong = {"a": "freeze.py:Freze", "b": "frieze.py:Freeze", "c": "freeze.py", "copy_last": "freeze.py:Freeze"}
    Path("broken.py").write_text("import nothing_of_that_name\n")
    Path("half.py").write_text("class Half:\n    def observe(self): ...\n")
    with pytest.raises(UserError) as caught:
        cells(store, ASK_MODEL, systems={**wrong, "d": "broken.py:X", "e": "half.py:Half"})
    lines = list(caught.value.lines)
    assert "did you mean Freeze?" in lines[0] and len(lines) == 6
    assert all("is not FILE.py:MAKER of a file that is there" in line for line in lines[1:3])
    assert lines[3].startswith("systems.copy_last: a name has letters")
    assert "broken.py cannot be loaded: ModuleNotFoundError" in lines[4]
    assert "Half has no step" in lines[5]
    with pytest.raises(UserError, match="dataset: name one"):
        cells(store, ASK_MODEL, dataset=None)
