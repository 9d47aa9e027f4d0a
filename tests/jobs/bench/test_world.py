"""The benchmark of a held world measures what it says, on a walk that is short."""

from __future__ import annotations

import pytest

from longtake.jobs.bench import world


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::longtake.models.rollout.LongContextWarning")
def test_a_short_walk_is_measured() -> None:
    rows = world.run(world.Settings(training="tiny", frames=200, rounds=1, streams=4, context=4))
    found = {(row.case, row.metric): row.value for row in rows}
    assert found["one stream", "single"] > 0 and found["4 streams", "batch"] > 0
    assert found["one stream", "memory"] == found["200 frames", "memory"] > 0
    assert 0.2 < found["200 frames", "ratio"] < 5
