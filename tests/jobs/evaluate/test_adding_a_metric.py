"""What docs/adding-a-metric.md tells people to write works: a metric of frames, one of sets, each in one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtake.storage.store import open_store
from tests.jobs.how_to import blocks, run
from tests.jobs.toy_data import noise, write_dataset

MAE, PALETTE = blocks("adding-a-metric.md", "python")
(ASK_METRICS,) = blocks("adding-a-metric.md", "yaml")
ASK = """
import json
from longtake.config import load
from longtake.jobs.cli import main
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import plan_cells
from longtake.jobs.evaluate.set_metrics import append_distances
from longtake.jobs.results.wide import side_by_side
from longtake.jobs.sweep.config import Objective
from longtake.storage.store import open_store
from longtake.tables import table as tables
from tests.evals import test_every_metric as contract

contract.test_a_name_means_one_thing()
for name in ("mae", "palette"):
    contract.test_it_has_the_face(name)
contract.test_the_truth_is_the_best_of_all("mae")
contract.test_it_says_the_smallest_frames_it_can_be_computed_of("mae")
contract.test_a_set_is_nearest_to_itself("palette")

store = open_store("store")
config = load(EvaluateConfig, "mine.yaml", search=".").model_copy(update={"dataset": "mazes", "stranger": False})
cells = plan_cells(config, store, [])
for cell in cells:
    tables.append(store, "scores", score_cell(cell.payload), part=cell.part)
lines = append_distances(store, cells)
wide = side_by_side(store, store.table("scores"), ["system"])
kept = len(store.find("features-palette"))
search = [Objective(metric="mae").direction, Objective(metric="psnr").direction]
told = {"lines": lines, "columns": list(wide.columns), "first": wide.system.iloc[0], "kept": kept, "search": search}
print(json.dumps(told), flush=True)
main(["metrics", "mae"])
"""


@pytest.mark.slow
def test_a_metric_is_one_file(tmp_path: Path) -> None:
    """It is asked, kept, shown in its place, searched by, and listed: nothing else is edited."""
    write_dataset(open_store(tmp_path / "store"), "mazes", noise(14, 9, 16), pose=False, test=0.5)
    (tmp_path / "mine.yaml").write_text(ASK_METRICS.replace("episodes: 48", "episodes: 5"))
    told, card = run(tmp_path, "longtake.evals.metrics", {"mae": MAE, "palette": PALETTE}, ASK).split("\n", 1)
    found = json.loads(told)
    assert found["lines"] == ["palette of 5 clips: comparable with others of 5 clips only"]
    assert found["columns"][:4] == ["system", "psnr", "mae", "palette"]
    assert found["kept"] == 2 + 1 and found["search"] == ["minimize", "maximize"]
    assert card.startswith("Mean absolute error of the pixels")
