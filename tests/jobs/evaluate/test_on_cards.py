"""Cells on a graphics card: their share of it, their precision, and scores that are compared only when told."""

from __future__ import annotations

import pytest

from longtake.cluster import launch
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate.cell import score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import find_subjects, plan_cells
from longtake.storage.store import Store, open_store
from longtake.tables.schema import NO_RUN
from tests.jobs.evaluate.toy import RETRIEVAL, RUN, episodes, write_run
from tests.jobs.toy_data import write_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(tmp_path_factory.mktemp("store"))
    write_dataset(store, "mazes", episodes(), test=0.5)
    write_run(store)
    return store


def planned(store: Store, **more: object) -> tuple[list[float], list[float], Protocol]:
    """Shares of a card of the models' cells and of the floors', and the protocol of all."""
    config = EvaluateConfig.model_validate({"protocols": [RETRIEVAL], **more})
    cells = plan_cells(config, store, find_subjects(store, RUN))
    assert all(cell.gpus == cell.payload.gpus for cell in cells)
    assert len({cell.payload.protocol.hash for cell in cells}) == 1
    shares = [[c.gpus for c in cells if (c.payload.run == NO_RUN) is floor] for floor in (False, True)]
    return shares[0], shares[1], cells[0].payload.protocol


def test_a_models_cells_share_a_card_in_bf16_and_floors_take_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, floors, plain = planned(store)
    assert set(models) == set(floors) == {0.0} and plain.precision is None
    monkeypatch.setattr(launch, "count_gpus", lambda: 1)
    models, floors, protocol = planned(store)
    assert set(models) == {0.25} and set(floors) == {0.0}
    assert protocol.precision == "autocast" and protocol.hash != plain.hash
    models, _, protocol = planned(store, gpus_per_cell=1.0, precision="fp32")
    assert set(models) == {1.0} and protocol.hash == plain.hash, "compared with a CPU's, for that was told"
    models, _, protocol = planned(store, gpus_per_cell=0.0)
    assert set(models) == {0.0} and protocol.hash == plain.hash


def test_rows_say_where_and_in_what_precision(store: Store) -> None:
    (subject,) = find_subjects(store, RUN)
    made = {}
    for precision in ("fp32", "autocast"):
        config = EvaluateConfig.model_validate({"protocols": [RETRIEVAL], "precision": precision})
        cells: list[ScoreCell] = [cell.payload for cell in plan_cells(config, store, [subject])]
        rows = score_cell(next(cell for cell in cells if cell.system == "block_ssm"))
        assert {(row["device"], row["precision"]) for row in rows} == {("cpu", precision)}
        made[precision] = [row["value"] for row in rows]
        assert all("device" not in row for row in score_cell(next(cell for cell in cells if cell.run == NO_RUN)))
    assert made["autocast"] != made["fp32"]
    assert made["autocast"] == pytest.approx(made["fp32"], rel=0.05)
