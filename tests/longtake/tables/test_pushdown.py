"""What is told to Parquet holds for every row that pandas selects: `where` means what pandas says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.storage.store import Store, open_store
from longtake.tables import pushdown
from longtake.tables import table as tables
from longtake.tables import where as query
from longtake.tables.compaction import compact

ROWS = [
    {"run": run, "step": step, "whole": whole, "number": number, "text": text}
    for run in ("a", "b")
    for step, (whole, number, text) in enumerate(
        [(1, 0.5, "x"), (None, 1.0, None), (3, None, "y"), (2, float("nan"), "it's"), (-1, -2.0, "")]
    )
]
MIXED = [{"run": "c", "step": 1, "whole": 2.5, "number": 3, "text": "z", "late": 4}]

constants = {"whole": ["2", "-1", "1.5", "[1, 3]"], "number": ["0.5", "1", "-2.0", "[0.5, 3]"]}
constants |= {"text": ["'x'", "'it\\'s'", "''", "['x', 'z']"], "run": ["'a'", "['a', 'c']"], "step": ["1", "[0, 4]"]}


def comparison(column: str) -> st.SearchStrategy[str]:
    made = []
    for constant in constants[column]:
        listed = constant.startswith("[")
        operators = ["in", "not in", "=="] if listed else ["==", "!=", "<", ">="]
        made += [f"{column} {operator} {constant}" for operator in operators]
        made += [] if listed else [f"{constant} == {column}"]
    return st.sampled_from(made)


leaves = st.sampled_from(sorted(constants)).flatmap(comparison)
queries = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "&", "|"]), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        inner.map(lambda query: f"not ({query})"),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """The same rows as parts, as one file, and as a file with a part that was written again."""
    made = [open_store(tmp_path_factory.mktemp(name)) for name in ("parts", "one", "both")]
    for store in made:
        tables.append(store, "steps", ROWS, "first")
        tables.append(store, "steps", MIXED, "second")
    compact(made[1], "steps")
    compact(made[2], "steps")
    tables.append(made[2], "steps", MIXED, "second")
    return made


@settings(deadline=None, max_examples=40)
@given(queries)
def test_a_query_means_what_pandas_says(stores: list[Store], where: str) -> None:
    for store in stores:
        frame = tables.read(store, "steps")
        expected = frame.query(where, engine="python")[["run", "step"]].values.tolist()
        assert tables.read(store, "steps", where, ["run", "step"]).values.tolist() == expected, where


def test_what_can_be_told_is_told(stores: list[Store]) -> None:
    schema = tables.look(stores[1], "steps", None, lambda pieces: pieces[0].fragment.physical_schema)
    every = set(schema.names)

    def told(where: str) -> bool:
        return pushdown.condition(query.parse(where), schema, every) is not None

    for where in (
        "run == 'a'",
        "step > 3 and text.isna()",
        "1 < step <= 3",
        "text in ['x']",
        "run == 'a' or step == 1",
    ):
        assert told(where), where
    for where in ("run != 'a'", "run == 'a' or text.isna()", "step == text", "step == 'a'", "not run == 'a'"):
        assert not told(where), where
    assert pushdown.condition(query.parse("run == 'a' and step > 2"), schema, {"text"}) is None


def test_columns_that_are_not_needed_are_not_read(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    arrow = tables.arrow
    monkeypatch.setattr(tables, "arrow", lambda *given: read.append(list(given[2])) or arrow(*given))  # type: ignore[func-returns-value]
    tables.read(stores[1], "steps", "whole > 1", ["text"])
    tables.read(stores[0], "steps", "whole > 1", ["text"])
    assert read == [["whole", "text"], ["run", "step", "whole", "text", "event_time"]]


def test_text_with_numbers_among_it_is_text(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    tables.append(store, "steps", [{"run": "r", "step": 1, "x": 1}], "a")
    tables.append(store, "steps", [{"run": "r", "step": 2, "x": "1"}], "b")
    for _ in range(2):
        assert tables.read(store, "steps", "x == '1'").step.tolist() == [1, 2]
        compact(store, "steps")
    assert isinstance(tables.read(store, "steps"), pd.DataFrame)
