"""A query selects rows and does nothing else: what is allowed means what pandas says, the rest is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables import where as query


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = open_store(tmp_path_factory.mktemp("store"))
    rows = [
        {"run": "r", "step": step, "loss": step / 2, "val_loss.4": step * 1.0, "n": None if step % 2 else 3}
        | {"warm": step > 2, "note": "it's `odd` & |" if step == 1 else "x"}
        for step in range(5)
    ]
    tables.append(made, "steps", rows, "a")
    return made


ASKED_AS_PANDAS_DOES = [
    "step > 2 & loss < 2",
    "step == 1 & run == 'r' | n > 2",
    "`val_loss.4` > 0 and step in [1, 2]",
    "n.isna()",
    "not n.notna()",
    "(loss + 1).notna() and ~(step < 2)",
    "step.between(1, 3)",
    "step % 2 == 0",
    "-step < -3",
    "1 < step <= 3",
    "run == ['r']",
    "run != ['r', 'x']",
    "n != 3",
    "n not in [4]",
    "warm",
    "not warm and n == 3",
    "step in (1,)",
    "run in []",
    'note == "it\'s `odd` & |"',
    "(step - loss) / 2 > 0.5",
    "step // 2 + 3 * step > 7\n or step == 0",
    "step * 2000000000000000000 > 1 and n * 1000000000000000000 > 1",
    "step // 0 > 1 or n % 0 == 0",
]


@pytest.mark.parametrize("where", ASKED_AS_PANDAS_DOES)
def test_it_means_what_pandas_says(store: Store, where: str) -> None:
    expected = tables.read(store, "steps").query(where.replace("\n", " "), engine="python").step.tolist()
    assert tables.read(store, "steps", where).step.tolist() == expected


def test_times_are_compared_with_text(store: Store) -> None:
    assert len(tables.read(store, "steps", "event_time.between('2020-01-01', '2200-01-01')")) == 5
    assert tables.read(store, "steps", "event_time < '2020-01-01 12:00'").empty


REFUSED = {
    "@__import__('os').system('touch PWNED')": "'@' at character 1",
    "step.to_csv('PWNED') == 1": "step.to_csv",
    "run.str.len() > 1": "a call",
    "step.pipe(step.to_csv) == 1": "step.pipe",
    "step.__class__.__init__.__globals__['os'] == 1": "an index",
    "step.values == 1": "step.values",
    "isna(step)": "a call",
    "step.isna(1)": "isna takes 0 values",
    "step.between(1, 2, inclusive='left')": "a call",
    "f'{step}' == 'a'": "a formatted text",
    "(lambda: 1)() > 0": "lambda",
    "[x for x in step] == 1": "[x for x in step]",
    "(y := step) > 1": "an assignment",
    "step if step else 1": "if and else",
    "step['a'] > 1": "an index",
    "{1: 2} == step": "a dictionary",
    "9**9**9 > step": "9 ** 9 ** 9",
    "step ** 1000000000 > 0": "step ** 1000000000",
    "step << 1000000000 > 0": "step << 1000000000",
    "'a' * 10000000000 == run": "is text",
    "run == 'a' * 10**10": "is text",
    "[1] * 10000000000 == step": "[1]",
    "step > 99999999999999999999": "64 bits",
    "step * 9223372036854775807 > 0": "more than 64 bits",
    "step + 9223372036854775807 < 0": "more than 64 bits",
    "-step - 9223372036854775807 > 0": "more than 64 bits",
    "n * 9223372036854775807 > 0": "more than 64 bits",
    "4294967296 * step * 4294967296 == 0": "more than 64 bits",
    "9000000000 * 9000000000 > step": "more than 64 bits",
    "step > " + "9" * 5000: "cannot be read",
    "step > 1e999": "inf",
    "step > None": "isna()",
    "step == 1j": "1j",
    "run == b'r'": "b'r'",
    "step in run": "behind `in` stands a list",
    "'r' in run": "behind `in` stands a list",
    "step == [run]": "in a list",
    "step < [1, 2]": "a list stands behind",
    "step is 1": "== compares",
    "run = 'r'": "cannot be read",
    "step >": "cannot be read",
    "import os": "cannot be read",
    "step > 1; 1": "cannot be read",
    "step > 1 # note": "'#' at character 10",
    "step > 1\x00": r"'\x00' at character 9",
    "run == 'a\x00'": "cannot be read",
    "\uff53tep > 1": r"'\uff53' at character 1",
    "st\u0435p > 1": r"'\u0435' at character 3",
    "step > \u0661": r"'\u0661' at character 8",
    "(" * 10_000 + "step" + ")" * 10_000 + " > 0": "more than 50 brackets",
    "not " * 10_000 + "warm": "deep",
    "-" * 100 + "step > 0": "more than 50 operators",
    "step" + " + step" * 100 + " > 0": "more than 50 operators",
    "x" * 2_000_000: "2000000 characters",
    "run == '" + "\\'" * 300_000: "the text that begins at character 8 has no end",
    'run == "' + "\\'" * 10: "the text that begins at character 8 has no end",
    " and ".join(["step > 0"] * 50_000): "99999 operators, 1000 at most",
    " < ".join(["step"] * 1002): "1001 operators, 1000 at most",
    "run == '\\ud800'": "half a character",
    "run in ['\\udfff']": "half a character",
    "`step > 1": "'`' at character 1",
    "index > 1": "unknown column 'index'",
    "`stp` > 1": "unknown column 'stp' (did you mean step?)",
    "3": "is no condition",
    "step": "is no condition",
    "warm and step": "'step' is no condition",
    "run > 3": "cannot be answered",
    "run + run == 'rr'": "'run' is text",
    "step > 5 // 0": "zero",
}


@pytest.mark.parametrize("where", REFUSED)
def test_everything_else_is_refused_by_name(
    store: Store, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        tables.read(store, "steps", where)
    (line,) = caught.value.lines
    assert line.startswith("where") and REFUSED[where] in line and "\n" not in line
    assert len(line) < 1000
    assert os.listdir(tmp_path) == []


def test_an_empty_table_vets_a_query_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"allowed are columns"):
        tables.read(open_store(tmp_path), "steps", "run.to_csv('x') == 1")


def test_the_columns_that_a_query_reads_are_known() -> None:
    tree = query.parse("step == 1 & run == 'a' | `odd name` > 2 and value.isna()")
    assert query.names(tree) == {"step", "run", "odd name", "value"}


def test_a_report_may_ask_for_thousands_of_runs(store: Store) -> None:
    runs = [f"20260101-000000-{number:04x}" for number in range(5_000)]
    assert tables.read(store, "steps", f"run in {[*runs, 'r']!r}").step.tolist() == [0, 1, 2, 3, 4]


def test_a_list_of_any_length_is_one_operator(store: Store) -> None:
    numbers = [-number for number in range(20_000)]
    assert tables.read(store, "steps", f"step in {numbers} or step == 3").step.tolist() == [0, 3]
