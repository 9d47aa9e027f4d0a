"""Trials on Ray Tune end, whatever happens to their processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longtake.cluster import launch
from longtake.storage.store import Store, open_store
from longtake.tuning import sweep as sweeps
from longtake.tuning import sweep_demand
from longtake.tuning.study import Study
from tests.longtake.tuning import toy_sweep
from tests.longtake.tuning.played import play, told
from tests.longtake.tuning.toy_sweep import STEPS, Toy, study_of

ROOT = Path(__file__).parents[3]


PATHS = f"{ROOT}:{ROOT / 'platform'}"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray whose workers find the toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        patch.delenv("RAY_ADDRESS", raising=False)
        with launch.launch(cpus=2):
            yield


def on_tune(store: Store, toy: Toy | None = None, *, at_once: int = 1, trials: int = 8, failures: int = 3) -> Study:
    study = study_of(store)
    sweeps.run(
        study,
        toy_sweep.trial,
        toy or Toy(),
        trials=trials,
        need=sweep_demand.SweepDemand(1, at_once=at_once),
        max_failures=failures,
    )
    return study


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
@pytest.mark.parametrize("at_once", [1, 2])
def test_the_bad_half_is_pruned(ray_here: None, tmp_path: Path, at_once: int) -> None:
    store = open_store(tmp_path / "tune")
    study = on_tune(store, Toy(pause_s=0.02), at_once=at_once)
    table = store.table("trials", where="sweep == 's'")
    assert len(table) == 8
    assert set(table["state"]) == {"done", "pruned"}
    assert (table["state"] == "pruned").sum() >= 3
    assert (table.loc[table["state"] == "done", "step"] == STEPS).all()
    assert (table["frames"] == 10 * table["step"]).all()
    (best,) = study.best()
    assert best.labels["good"] is True
    if at_once == 1:
        alone = study_of(open_store(tmp_path / "alone"))
        play(alone, trials=8)
        assert told(study) == told(alone)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_failures_and_deaths_end_as_what_they_are(ray_here: None, tmp_path: Path) -> None:
    """A trial that raises is failed; one whose process dies is started again; the others go on."""
    study = on_tune(open_store(tmp_path), Toy(fails=1, dies=0, flag=str(tmp_path / "died")), trials=3)
    rows = study.rows()
    assert (tmp_path / "died").exists()
    assert rows[0]["state"] == "done"
    assert (rows[1]["state"], rows[1]["reason"]) == ("failed", "ValueError: planted failure")
    assert rows[2]["state"] in ("done", "pruned")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_a_process_that_dies_too_often_is_a_failure(ray_here: None, tmp_path: Path) -> None:
    study = on_tune(open_store(tmp_path), Toy(dies=0, flag=str(tmp_path / "died")), trials=2, failures=0)
    first, second = study.rows()
    assert first["state"] == "failed" and "process died" in first["reason"]
    assert second["state"] in ("done", "pruned")
    on_tune(open_store(tmp_path), trials=2)  # nothing is left to do
