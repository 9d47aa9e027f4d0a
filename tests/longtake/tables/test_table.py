"""Tables: parts that are there whole or not at all, one row per key, types that survive."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.tables import files as table_files
from longtake.tables import schema
from longtake.tables import table as tables
from longtake.tables.compaction import compact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def score(**more: Any) -> dict[str, Any]:
    row = {"run": "r", "checkpoint": 200, "task": "retrieval", "system": "m", "protocol": "p", "episode": 0}
    return row | {"seed": 0, "frame": 0, "metric": "psnr", "value": 1.0} | more


def told(store: Store, table: str, **arguments: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        tables.read(store, table, **arguments)
    return list(caught.value.lines)


def test_an_empty_table_has_its_key(store: Store) -> None:
    for table, keys in schema.KEYS.items():
        frame = tables.read(store, table, where="anything > 1")
        assert frame.empty
        assert list(frame.columns) == [*keys, "event_time"]


def test_a_retry_overwrites_and_nothing_doubles(store: Store) -> None:
    for value in (1.0, 2.0):
        tables.append(store, "scores", [score(value=value), score(frame=1)], "r/cell-0")
    frame = tables.read(store, "scores")
    assert frame["value"].tolist() == [2.0, 1.0]
    assert tables.parts(store, "scores") == ["r/cell-0"]


def test_the_newest_event_of_a_key_wins_whatever_the_parts_are_called(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 3.0}], "z")
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 2.0}], "a")
    assert tables.read(store, "steps")["loss"].tolist() == [2.0]


def test_of_one_part_the_last_row_of_a_key_wins(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": x} for x in (3.0, 1.0, 2.0)], "a")
    assert tables.read(store, "steps")["loss"].tolist() == [2.0]


def test_the_newest_event_wins_as_a_whole_row(store: Store) -> None:
    """A column that the newest row leaves empty is not filled from an older one."""
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 3.0, "lr": 0.1}], "a")
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 2.0}], "b")
    assert tables.read(store, "steps")["lr"].isna().all()


def test_rows_that_differ_in_no_key_but_null_are_one(store: Store) -> None:
    for part in ("a", "b"):
        tables.append(store, "scores", [score(checkpoint=None)], part)
    assert len(tables.read(store, "scores")) == 1


def test_columns_of_all_parts_unite_with_their_types(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "clips": 8, "warm": True, "note": "x"}], "a")
    tables.append(store, "steps", [{"run": "r", "step": 2, "loss": 1}], "b")
    tables.append(store, "steps", [{"run": "r", "step": 3, "loss": 0.5, "clips": None}], "c")
    frame = tables.read(store, "steps")
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    assert kinds == {
        "run": "str",
        "step": "int64",
        "clips": "Int64",
        "warm": "boolean",
        "note": "str",
        "event_time": "datetime64[ns, UTC]",
        "loss": "float64",
    }
    assert frame["clips"].tolist()[0] == 8
    assert frame["loss"].tolist()[1:] == [1.0, 0.5]


def test_big_whole_numbers_survive_nulls(store: Store) -> None:
    big = 2**62 + 1
    tables.append(store, "steps", [{"run": "r", "step": 1, "seed": big}, {"run": "r", "step": 2}], "a")
    assert tables.read(store, "steps")["seed"].tolist()[0] == big


def test_a_column_of_two_minds_becomes_text(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "x": 1}], "a")
    tables.append(store, "steps", [{"run": "r", "step": 2, "x": "one"}], "b")
    assert tables.read(store, "steps")["x"].tolist() == ["1", "one"]


def test_structured_values_become_text(store: Store, tmp_path: Path) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "x": {"a": [1, 2]}, "y": tmp_path}], "a")
    assert tables.read(store, "steps")[["x", "y"]].values.tolist() == [['{"a": [1, 2]}', str(tmp_path)]]


def test_a_frame_is_appended_like_rows(store: Store) -> None:
    tables.append(store, "steps", pd.DataFrame({"run": ["r", "r"], "step": [1, 2], "loss": [3.0, 4.0]}), "a")
    assert tables.read(store, "steps")["loss"].tolist() == [3.0, 4.0]


def test_no_rows_are_a_part_all_the_same(store: Store) -> None:
    tables.append(store, "scores", [], "cell")
    assert tables.parts(store, "scores") == ["cell"]
    assert tables.read(store, "scores").empty


def test_a_query_selects_rows_after_the_newest_won(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 3.0}], "a")
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 1.0}], "b")
    assert tables.read(store, "steps", where="loss > 2").empty
    assert store.table("steps", where="loss < 2 and run == 'r'", columns=["loss"]).columns.tolist() == ["loss"]


def test_wrong_names_and_queries_are_told(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 3.0}], "a")
    assert told(store, "step") == [
        "unknown table 'step' (did you mean steps?); there are: bench, notes, runs, scores, steps, trials"
    ]
    (line,) = told(store, "steps", where="los > 1")
    assert "unknown column 'los' (did you mean loss?)" in line
    first, second = told(store, "steps", columns=["los", "run", "stp"])
    assert "did you mean loss?" in first
    assert "did you mean step?" in second
    for wrong in ("loss >", "run > 3", "loss + 1", "@os.getcwd()", "3", "'a'"):
        (line,) = told(store, "steps", where=wrong)
        assert line.startswith(f"where {wrong!r}")


def test_our_own_mistakes_are_not_the_users(store: Store) -> None:
    with pytest.raises(ValueError, match="lacks step"):
        tables.append(store, "steps", [{"run": "r"}], "a")
    with pytest.raises(TypeError, match="'x' holds values of different types"):
        tables.append(store, "steps", [{"run": "r", "step": 1, "x": 1}, {"run": "r", "step": 2, "x": "a"}], "a")
    for part in ("", "../up", "/abs", "a/../b", ".hidden", "a b"):
        with pytest.raises(ValueError, match="part"):
            tables.append(store, "steps", [], part)


def test_half_written_parts_are_never_seen(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 1.0}], "a")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 9.0}], "a")
    (tmp_path / "tables" / "steps" / ".longtake-tmp-x.parquet").write_bytes(b"half")
    assert tables.read(store, "steps")["loss"].tolist() == [1.0]


def test_a_file_of_another_layout_is_named(store: Store) -> None:
    store.write_bytes("tables/steps/p.0000000000000000001-0011aabb.parquet", b"")
    (line,) = told(store, "steps")
    assert "0011aabb.parquet is no file of a table of this layout (3; older ones had no checksums): move it" in line
    store.remove(["tables/steps/p.0000000000000000001-0011aabb.parquet"])
    newer = schema.empty("steps").empty_table().replace_schema_metadata({b"longtake": b'{"layout": 4}'})
    table_files.write(store, *table_files.part_file("steps", "new", 1, newer))
    (line,) = told(store, "steps")
    assert "has layout 4 of tables; this Longtake reads 3" in line


def test_a_file_of_another_table_is_named(store: Store, tmp_path: Path) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1}], "a")
    (tmp_path / "tables/steps").rename(tmp_path / "tables/runs")
    (line,) = told(store, "runs")
    assert line.endswith(".parquet is a file of table steps, not of runs: move it back")


def test_how_many_files_are_of_another_layout_is_told(store: Store) -> None:
    for number in range(3):
        store.write_bytes(f"tables/steps/p{number}.parquet", b"")
    (line,) = told(store, "steps")
    assert "p0.parquet is no file" in line and "nor are 2 more below" in line and "move them away" in line


def test_a_column_called_as_its_folder_is_no_partition(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1}], "run=other/a")
    assert tables.read(store, "steps")["run"].tolist() == ["r"]


def test_columns_have_their_types_whatever_a_part_holds(store: Store) -> None:
    tables.append(store, "scores", [score(value=1, checkpoint=None)], "a")
    _, name = store.find("tables/scores")
    kinds = {field.name: str(field.type) for field in pq.read_schema(io.BytesIO(store.read_bytes(name)))}
    assert (kinds["value"], kinds["checkpoint"]) == ("double", "int64")
    with pytest.raises(TypeError, match="column 'value' of table scores holds numbers"):
        tables.append(store, "scores", [score(value="high")], "b")


def test_the_columns_are_documented() -> None:
    assert schema.describe() in (Path(__file__).parents[3] / "docs" / "tables.md").read_text()
    for table, columns in schema.COLUMNS.items():
        assert set(schema.KEYS[table]) <= set(columns)


def test_a_clock_that_is_behind_still_replaces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 3.0}], "a")
    monkeypatch.setattr(tables, "now_ns", lambda: 1)
    tables.append(store, "steps", [{"run": "r", "step": 1, "loss": 2.0}], "a")
    assert tables.read(store, "steps")["loss"].tolist() == [2.0]


def test_one_part_is_read_alone(store: Store) -> None:
    for part in ("a", "a.b", "b"):
        tables.append(store, "runs", [{"run": part, "seed": 1}], part)
    assert tables.read(store, "runs", part="a")["run"].tolist() == ["a"]
    compact(store, "runs")
    tables.append(store, "runs", [{"run": "a", "seed": 2}], "a")
    assert tables.read(store, "runs", part="a")["seed"].tolist() == [2]
    assert tables.read(store, "runs", part="b")["seed"].tolist() == [1]
    assert tables.read(store, "runs", part="c").empty


def test_many_writers_at_once(store: Store) -> None:
    def write(number: int) -> None:
        tables.append(store, "steps", [{"run": f"r{number % 4}", "step": number}], f"p{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    frame = tables.read(store, "steps")
    assert sorted(frame["step"]) == list(range(64))
    assert frame["event_time"].is_unique


def test_runs_join(store: Store) -> None:
    tables.append(store, "runs", [{"run": "r", "seed": 7, "status": "done"}], "r")
    tables.append(store, "scores", [score(), score(run="other")], "a")
    frame = tables.read(store, "scores", where="run_seed == 7", join_runs=True)
    assert frame["run"].tolist() == ["r"]
    assert {"seed", "run_seed", "run_status"} <= set(frame.columns)
    assert "run_event_time" in frame


def test_a_silent_run_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for run, status in (("a", "running"), ("b", "done")):
        tables.append(store, "runs", [{"run": run, "status": status}], run)
    assert tables.read(store, "runs")["status"].tolist() == ["running", "done"]
    monkeypatch.setattr(tables, "LOST_AFTER_S", -1.0)
    assert tables.read(store, "runs")["status"].tolist() == ["lost", "done"]
    assert tables.read(store, "runs", where="status == 'lost'")["run"].tolist() == ["a"]


values = st.one_of(st.none(), st.integers(-(2**60), 2**60))
events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), values), max_size=20)


@settings(deadline=None, max_examples=50)  # it writes files: a busy disk is no failure
@given(events)
def test_a_table_is_a_dictionary_written_in_order(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[int, int, int | None]]
) -> None:
    """Reading gives, of each key, the last value that stands in any part, whatever the parts are."""
    store = open_store(tmp_path_factory.mktemp("store"))
    standing: dict[int, tuple[int, int, int | None]] = {}
    for order, (part, step, value) in enumerate(written):
        tables.append(store, "steps", [{"run": "r", "step": step, "x": value}], f"p{part}")
        standing[part] = (order, step, value)
    expected = {step: value for _, step, value in sorted(standing.values(), key=lambda event: event[0])}
    frame = tables.read(store, "steps")
    got = {} if frame.empty else {row.step: None if pd.isna(row.x) else row.x for row in frame.itertuples()}
    assert got == expected


def test_parts_are_plain_parquet(store: Store) -> None:
    tables.append(store, "steps", [{"run": "r", "step": 1}], "a")
    _, name = store.find("tables/steps")
    table = pq.read_table(io.BytesIO(store.read_bytes(name)))
    assert table.column_names == ["run", "step", "event_time"]
    assert str(table.schema.field("event_time").type) == "timestamp[ns, tz=UTC]"
