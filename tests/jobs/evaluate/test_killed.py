"""`longtake evaluate`, killed with kill -9 at random moments and run again: the same table, and no row twice.

`make drills` kills twice. By hand: `LONGTAKE_KILLS=10 pytest -m drill -s tests/jobs/evaluate/test_killed.py` kills ten
times and prints when.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import longtake
from longtake.storage.store import open_store
from longtake.tables import table as tables
from tests.jobs.evaluate.toy import RUN, episodes, write_run
from tests.jobs.toy_data import write_dataset

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("LONGTAKE_KILLS", "2"))
KEYS = ["run", "checkpoint", "task", "system", "protocol", "episode", "seed", "frame", "metric"]
CONFIG = """
clips_per_cell: 1
protocols:
  - {task: retrieval, context: 6, horizon: 6, episodes: 6, sampler: {steps: 4}}
  - {task: reasoning, context: 4, horizon: 6, episodes: 6, metrics: [psnr], sampler: {steps: 4}}
  - {task: questions, context: 6, horizon: 2, episodes: 12}
"""

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.drill]


@pytest.mark.timeout(600 + 300 * KILLS)
def test_killed_and_run_again_the_table_is_the_same(tmp_path: Path) -> None:
    store = open_store(tmp_path / "whole")
    write_dataset(store, "mazes", episodes(24), test=0.5)
    write_run(store)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "asked.yaml").write_text(CONFIG)
    assert start(tmp_path, "whole").wait(240) == 0
    cells, draw = parts(tmp_path, "whole"), random.Random(KILLS)
    moments = sorted(draw.sample(range(cells - 10), KILLS))
    for number, moment in enumerate(moments):
        driver, deadline = start(tmp_path, "killed"), time.monotonic() + 240
        while parts(tmp_path, "killed") < moment and driver.poll() is None:
            assert time.monotonic() < deadline, "it scores nothing"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        assert driver.poll() is None, "it was done before it could be killed"
        driver.kill()
        driver.wait(60)
        print(f"kill {number}: with {parts(tmp_path, 'killed')} of {cells} cells scored")
    assert start(tmp_path, "killed").wait(240) == 0
    pd.testing.assert_frame_equal(rows(tmp_path, "killed"), rows(tmp_path, "whole"), check_exact=True)


def start(folder: Path, store: str) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    words = ["evaluate", str(folder / "asked.yaml"), "--runs", RUN, "--store", str(folder / store)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
    with (folder / f"{store}.log").open("ab") as log:
        command = [sys.executable, "-m", "longtake.jobs", *words]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=folder)


def parts(folder: Path, store: str) -> int:
    """Cells that are in the table."""
    return len(tables.parts(open_store(folder / store), "scores"))


def rows(folder: Path, store: str) -> pd.DataFrame:
    """All rows, in a fixed order, without the time at which they were written; none is there twice."""
    found = longtake.open_store(folder / store).table("scores")
    assert len(found) and not found.duplicated(KEYS).any()
    return found.drop(columns=["event_time"]).sort_values(KEYS).reset_index(drop=True)
