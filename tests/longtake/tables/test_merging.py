"""Tables with many parts stay quick without anybody calling for it, and lose no row by it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pandas as pd
import pytest

from longtake.storage.store import Store, open_store
from longtake.tables import merging
from longtake.tables import table as tables


def rows(part: int, count: int = 100) -> list[dict[str, Any]]:
    return [{"run": "r", "step": step, "loss": 1 / (1 + step)} for step in range(part * count, (part + 1) * count)]


def append(store: Store, table: str, some: list[dict[str, Any]], part: str) -> None:
    """As a training does."""
    tables.append(store, table, some, part)
    merging.note_append(store, table)


def live(store: Store) -> int:
    return sum(not name.rpartition("/")[2].startswith("compacted-") for name in parquet(store))


def parquet(store: Store) -> list[str]:
    return [name for name in store.find("tables/steps") if name.endswith(".parquet")]


@pytest.fixture
def store(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(merging, "MANY", 20)
    monkeypatch.setattr(merging, "LOOK_EVERY", 10)
    return open_store(tmp_path)


def test_parts_are_merged_behind_the_writers_back(store: Store) -> None:
    for part in range(60):
        append(store, "steps", rows(part, 5), f"r-{part:08d}")
    merging.look(store, "steps").join(60)
    assert live(store) < 30
    found = store.table("steps")
    assert found.step.tolist() == list(range(300))
    pd.testing.assert_series_equal(found.loss, 1 / (1 + found.step), check_names=False)


def test_few_parts_and_those_of_a_large_table_are_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in range(25):
        tables.append(store, "trials", [{"sweep": "s", "trial": part}], f"s-{part}")
    assert merging.are_many(store, "trials") and not merging.are_many(store, "steps")
    monkeypatch.setattr(merging, "SMALL_BYTES", 100)
    assert not merging.are_many(store, "trials")
    monkeypatch.setattr(merging, "AT_MOST", 25)
    assert merging.are_many(store, "trials")


def test_what_cannot_be_merged_disturbs_no_writer(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    tables.append(store, "steps", rows(0, 5), "r-0")
    broken = parquet(store)[0]
    store.write_bytes(broken, b"rot")
    for part in range(1, 40):
        append(store, "steps", rows(part, 5), f"r-{part}")
    merging.look(store, "steps").join(60)
    assert live(store) == 40
    tables.append(store, "steps", rows(0, 5), "r-0")
    merging.look(store, "steps").join(60)
    assert len(store.table("steps")) == 200 and live(store) == 0


def test_a_table_in_a_bucket_is_read_without_asking_for_each_object(bucket: str) -> None:
    """What a read asks of a bucket: listings, and each part once; of merged ones the size too."""
    store = open_store(f"{bucket}/merging")
    for part in range(30):
        tables.append(store, "steps", rows(part, 5), f"r-{part:08d}")
    asked: Counter[str] = Counter()
    store.fs.exists(store.path("x"))  # connected by now
    store.fs._s3.meta.events.register("before-call.s3.*", lambda model, **_: asked.update([model.name]))
    assert len(store.table("steps")) == 150
    assert asked["GetObject"] == 30 and asked["HeadObject"] == 0 and asked["ListObjectsV2"] <= 4, asked


@pytest.mark.slow
def test_a_hundred_thousand_steps_are_read_within_a_second(tmp_path: Any) -> None:
    store = open_store(tmp_path)
    for part in range(1000):
        append(store, "steps", rows(part), f"r-{part:08d}")
    merging.look(store, "steps").join(60)
    began = time.process_time()
    assert len(store.table("steps")) == 100_000
    assert time.process_time() - began < 1.0
