"""The benchmark of a service measures sessions that are batched beside those that are not."""

from __future__ import annotations

import pytest

from longtake.jobs.bench import serve


@pytest.mark.slow
def test_sessions_are_measured_in_a_batch_and_apart() -> None:
    rows = serve.run(serve.Settings(training="tiny", sessions=8, rounds=2))
    found = {row.metric: row.value for row in rows}
    assert found["batch"] > 1 and found["frames"] > 0 and 1 <= found["exact"] <= 8
