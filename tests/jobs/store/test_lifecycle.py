"""What a store holds is listed, named, noted and removed; nothing is removed that something else needs."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.jobs.datasets import command as datasets
from longtake.jobs.report.gather import gather
from longtake.jobs.runs import command as runs
from longtake.jobs.store import du, gc, notes, rm
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.find import find_run
from longtake.tables.run_record import RunRecord
from longtake.training import checkpoints
from tests.jobs.filled_store import Data, Settings, fill


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return fill(open_store(tmp_path / "store"))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["mazes"], r"dataset mazes is needed by run a1 \(base\), run a2 \(both\): remove them too"),
        (["halls"], r"dataset halls is needed by run a2 \(both\): remove it too"),
        (["t1"], r"run t1 \(coder\) is needed by run b1 \(latent\)"),
        (["search-000"], r"run r1 \(search-000\) is needed by sweep s1"),
        (["maze"], "unknown dataset or run 'maze' .did you mean mazes"),
    ],
)
def test_what_others_need_is_not_removed(store: Store, names: list[str], told: str) -> None:
    before = store.find()
    with pytest.raises(UserError, match=told):
        rm.main(names, store.uri, False)
    assert store.find() == before


def test_what_is_removed_frees_its_bytes_and_its_rows_say_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    rm.main(["a2", "halls"], store.uri, True)
    told = capsys.readouterr().out
    assert "5.0 kB  run a2 (both)" in told and "dataset halls" in told and "nothing is removed" in told
    assert store.exists("datasets/halls/manifest.json") and store.find("runs/a2")
    rm.main(["a2", "halls"], store.uri, False)
    assert "freed; the rows in the tables stay" in capsys.readouterr().out
    assert not store.find("runs/a2") and not store.find("datasets/halls") and store.find("runs/a1")
    row = store.table("runs").set_index("run").loc["a2"]
    assert row.status == "removed" and str(row.reason).startswith("its files were removed on 20")
    for ask in (lambda: find_run(store, "a2"), lambda: gather(store, ["a2"])):
        with pytest.raises(UserError, match="run a2: its files were removed on .*; its rows are in the tables still"):
            ask()
    assert str(find_run(store, "latest")["run"]) == "t1"
    runs.main(store.uri, None, where="status == 'removed'")
    assert capsys.readouterr().out.splitlines()[1].startswith("a2")


def test_all_that_needs_each_other_goes_together(store: Store) -> None:
    rm.main(["mazes", "base", "both"], store.uri, False)
    rm.main(["t1", "b1"], store.uri, False)
    rm.main(["search"], store.uri, False)
    assert sorted({name.split("/")[0] for name in store.find()}) == ["datasets", "tables"]
    assert set(store.table("runs").status) == {"removed"}


@pytest.mark.slow
def test_in_a_bucket_too(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(open_store(f"{bucket}/store"))
    test_what_is_removed_frees_its_bytes_and_its_rows_say_so(store, capsys)
    with pytest.raises(UserError, match="dataset mazes is needed by run a1"):
        rm.main(["mazes"], store.uri, False)
    notes.tag("a1", ["good"], store.uri)
    assert find_run(store, "a1")["tags"] == "good"
    gc.main(store.uri, False)
    assert set(du.usage(store)["name"]) >= {"a1", "mazes", "scores"} - {"scores"}


def test_a_run_that_goes_on_is_not_removed(store: Store) -> None:
    record = RunRecord.start(store, "live", kind="train", name="live", config=Settings(data=Data(dataset="other")))
    with pytest.raises(UserError, match="run live is running: stop it first"):
        rm.main(["live"], store.uri, False)
    record.finish()


def test_a_run_is_tagged_noted_and_renamed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    notes.tag("base", ["good", "v2"], store.uri)
    notes.note("base", "the one of the paper", store.uri)
    notes.rename("base", "final", store.uri)
    row = find_run(store, "final")
    assert (row["run"], row["tags"], row["note"]) == ("a1", "good v2", "the one of the paper")
    capsys.readouterr()
    runs.main(store.uri, None, tag="good")
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["tags", "note"] and line.startswith("a1") and "final" in line
    notes.tag("a1", ["good"], store.uri, remove=True)
    assert find_run(store, "a1")["tags"] == "v2" and find_run(store, "a1")["note"] == "the one of the paper"
    with pytest.raises(UserError, match="has no tag 'good'; it has v2"):
        notes.tag("a1", ["good"], store.uri, remove=True)
    with pytest.raises(UserError, match="name 'latest'"):
        notes.rename("a1", "latest", store.uri)
    assert set(store.table("runs", where="tags == 'v2'").run) == {"a1"}


def test_a_dataset_keeps_its_name(store: Store) -> None:
    for change in (
        lambda: notes.tag("mazes", ["good"], store.uri),
        lambda: notes.rename("mazes", "walks", store.uri),
        lambda: notes.note("mazes", "why", store.uri),
    ):
        with pytest.raises(UserError, match="mazes is a dataset: it keeps its name"):
            change()


def test_a_note_outlives_what_the_run_writes_of_itself(store: Store) -> None:
    record = RunRecord.start(store, "live", kind="train", name="live", config=Settings())
    notes.tag("live", ["hot"], store.uri)
    record.finish("stopped")
    RunRecord.start(store, "live", kind="train", name="live", config=Settings()).finish()
    row = find_run(store, "live")
    assert (row["tags"], row["status"], row["sessions"]) == ("hot", "done", 2)


def test_the_datasets_are_listed(store: Store) -> None:
    store.write_bytes("datasets/half/shard-0", bytes(2000))
    found = datasets.overview(store).set_index("dataset")
    assert list(found.index) == ["half", "halls", "mazes"]
    assert found.loc["mazes", ["episodes", "frames", "shape", "runs"]].tolist() == [10, 40, "8x8x3", 1]
    assert found.loc["half", ["size", "about"]].tolist() == ["2.0 kB", "unfinished"]


def test_what_takes_the_bytes_is_told(store: Store) -> None:
    found = du.usage(store).set_index("name")
    assert found.loc["a1", ["kind", "called", "files"]].tolist() == ["run", "base", 2]
    assert found["bytes"].sum() == sum(store.sizes("").values())
    assert found["bytes"].is_monotonic_decreasing


def test_what_is_of_no_use_is_collected(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.write_bytes("runs/a1/checkpoints/step-000004/model.safetensors", bytes(3000))
    store.write_bytes("runs/stray/model.safetensors", bytes(10))
    store.write_bytes("datasets/half/shard-0", bytes(10))
    notes.annotate(store, "b1", removed=datetime.datetime.now(datetime.UTC))
    before = store.find()
    gc.main(store.uri, True)
    told = capsys.readouterr().out
    assert "unfinished checkpoint 4 of run a1" in told and "rest of run b1" in told and "would be freed" in told
    assert "runs/stray is in no row" in told and "dataset half is unfinished" in told
    assert store.find() == before
    gc.main(store.uri, False)
    assert "8.0 kB freed" in capsys.readouterr().out
    assert checkpoints.unfinished(store, "a1") == [] and checkpoints.complete(store, "a1") == [2]
    assert not store.find("runs/b1") and store.find("runs/stray") and store.find("datasets/half")


def test_a_row_that_says_little_is_read_all_the_same(tmp_path: Path) -> None:
    """As another program may write it, or an earlier version."""
    store = open_store(tmp_path / "bare")
    for run, name in (("x1", "bare"), ("x2", "other")):
        tables.append(store, "runs", [{"run": run, "kind": "train", "name": name}], run)
    assert find_run(store, "bare")["run"] == "x1"
    gc.main(store.uri, True)
    rm.main(["bare"], store.uri, False)
    with pytest.raises(UserError, match="run x1: its files were removed on 20"):
        find_run(store, "x1")
