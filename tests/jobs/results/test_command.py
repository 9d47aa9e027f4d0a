"""What `longtake results` prints: means that mean something, and formats that programs can read back."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longtake.config import Config
from longtake.errors import UserError
from longtake.jobs import cli
from longtake.jobs.display.show import show
from longtake.jobs.display.table_formats import FORMATS
from longtake.jobs.plots.base import broken
from longtake.jobs.results.command import PLOTS, condense, main, order, plot_command
from longtake.jobs.results.summary import means, summary
from longtake.jobs.runs import command as runs
from longtake.jobs.store import compact
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.run_record import RunRecord

LABEL = {"run": "r", "checkpoint": 1, "task": "retrieval", "metric": "psnr", "protocol": "p1", "dataset": "d"}


def scores(*cells: tuple[str, int, float], **more: Any) -> list[dict[str, Any]]:
    """Rows for (system, episode, value); frames are counted up."""
    return [
        LABEL | {"system": system, "episode": episode, "seed": 0, "frame": frame, "value": value} | more
        for frame, (system, episode, value) in enumerate(cells)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "store")
    tables.append(store, "scores", scores(("a", 0, 10.0), ("a", 1, 20.0), ("b", 0, 5.0), ("b", 1, 5.0)), "x")
    return store


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12), st.integers(1, 4))
def test_the_interval_is_students_t_over_episodes(values: list[float], frames: int) -> None:
    """More frames per episode are not more evidence."""
    rows = scores(*[("a", episode, value) for episode, value in enumerate(values) for _ in range(frames)])
    (line,) = summary(pd.DataFrame(rows)).to_dict("records")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert line["episodes"] == len(values)
    assert line["mean"] == pytest.approx(np.mean(values), abs=1e-9)
    assert line["ci95"] == pytest.approx(half, abs=1e-9)
    assert line["se"] == pytest.approx(stats.sem(values), abs=1e-9)
    assert min(values) - 1e-9 <= line["low"] <= line["high"] <= max(values) + 1e-9


def test_episodes_count_alike_however_long_they_are() -> None:
    rows = scores(("a", 0, 0.0), ("a", 0, 0.0), ("a", 0, 0.0), ("a", 1, 10.0))
    assert summary(pd.DataFrame(rows))["mean"].tolist() == [5.0]


def test_one_episode_has_no_interval() -> None:
    assert summary(pd.DataFrame(scores(("a", 0, 1.0))))["ci95"].isna().all()


def test_protocols_and_metrics_are_never_mixed() -> None:
    rows = scores(("a", 0, 1.0), ("a", 1, 1.0)) + scores(("a", 0, 9.0), protocol="p2")
    rows += scores(("a", 0, 0.5), metric="ssim")
    frame = summary(pd.DataFrame(rows), ["system"])
    assert frame[["metric", "protocol", "mean"]].values.tolist() == [
        ["psnr", "p1", 1.0],
        ["psnr", "p2", 9.0],
        ["ssim", "p1", 0.5],
    ]


def test_episodes_of_two_datasets_are_different_episodes() -> None:
    rows = scores(("a", 0, 1.0)) + scores(("a", 0, 3.0), dataset="e")
    found = summary(pd.DataFrame(rows))
    assert found[["dataset", "mean", "episodes"]].values.tolist() == [["d", 1.0, 1], ["e", 3.0, 1]]


def test_rows_without_a_checkpoint_are_kept() -> None:
    assert summary(pd.DataFrame(scores(("a", 0, 1.0), checkpoint=None)))["mean"].tolist() == [1.0]


def test_means_of_other_tables() -> None:
    rows = pd.DataFrame({"run": ["a", "a", "b"], "step": [1, 2, 1], "loss": [1.0, 3.0, 5.0], "note": ["x"] * 3})
    frame = means(rows, ["run"])
    assert frame.to_dict("records") == [
        {"run": "a", "step": 1.5, "loss": 2.0, "rows": 2},
        {"run": "b", "step": 1.0, "loss": 5.0, "rows": 1},
    ]


def test_columns_ask_for_rows() -> None:
    rows = pd.DataFrame(scores(("a", 0, 1.0), ("a", 1, 2.0)))
    assert condense("scores", rows, [], ["episode", "value"]).values.tolist() == [[0, 1.0], [1, 2.0]]
    assert list(condense("scores", rows, [], ["all"]).columns) == list(rows.columns)


def test_unknown_columns_are_told_all_at_once() -> None:
    rows = pd.DataFrame(scores(("a", 0, 1.0)))
    for wrong in (
        lambda: condense("scores", rows, ["sytem", "tsk"], []),
        lambda: condense("scores", rows, [], ["sytem", "tsk"]),
        lambda: condense("steps", rows, ["sytem", "tsk"], []),
        lambda: order(rows, ["sytem", "-tsk"]),
    ):
        with pytest.raises(UserError) as caught:
            wrong()
        assert len(caught.value.lines) == 2
        assert "did you mean system?" in caught.value.lines[0]


def test_who_asks_for_models_is_told_where_they_stand() -> None:
    with pytest.raises(UserError, match="in the column system"):
        condense("scores", pd.DataFrame(scores(("a", 0, 1.0))), ["model", "task"], [])


def test_sorting_rises_and_falls() -> None:
    frame = pd.DataFrame({"a": [1, 2, 2], "b": [1, 1, 2]})
    assert order(frame, ["-a", "b"]).values.tolist() == [[2, 1], [2, 2], [1, 1]]
    assert order(frame, []) is frame


def test_the_plain_table_lines_up(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    main("scores", store.uri, by="system", sort="-mean")
    assert capsys.readouterr().out.splitlines() == [
        "system  metric  protocol  mean  se   ci95  low  high  episodes",
        "a       psnr    p1          15   5  63.53   10    20         2",
        "b       psnr    p1           5   0      0    5     5         2",
    ]


def test_programs_read_it_back(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = store.table("scores", columns=["system", "episode", "value"])
    printed = {}
    for kind in ("csv", "json", "md"):
        main("scores", store.uri, columns="system,episode,value", format=kind)
        printed[kind] = capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(printed["csv"])), rows)
    assert json.loads(printed["json"]) == rows.to_dict("records")
    assert printed["md"].splitlines()[:3] == [
        "| system | episode | value |",
        "| --- | ---: | ---: |",
        "| a | 0 | 10 |",
    ]
    main("scores", store.uri, columns="system,episode,value", out=str(tmp_path / "x.parquet"))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), rows)


def test_where_comes_before_the_means(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    main("scores", store.uri, where="episode == 1 and system == 'a'", format="csv")
    assert capsys.readouterr().out.splitlines()[1:] == ["retrieval,a,r,1,psnr,p1,20.0,,,,,1"]


def test_a_terminal_gets_a_table_with_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show(pd.DataFrame({"name": ["[red]x[/red]"], "value": [1.25]}))
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "1.25" in out
    with pytest.raises(UserError, match="not for a terminal"):
        show(pd.DataFrame(), "parquet")


@pytest.mark.parametrize(("width", "lines"), [(60, 4), (40, 5), (32, 5), (16, 3)])
def test_a_terminal_cuts_nothing(
    width: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wide enough: a line a row. Narrower: words are broken off, then ids, never numbers. Too narrow: as to a pipe."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    show(pd.DataFrame({"run": ["20261121-105012-ew3c", "b"], "why": ["lost its place", ""], "value": [12345.25, 1.0]}))
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.strip()]) == lines, out
    assert "12345" in out and ("20261121-105012-ew3c" in out) == (width != 32)
    assert Counter("20261121-105012-ew3clostitsplace12345") <= Counter(out)
    show(pd.DataFrame({"run": [], "why": []}))
    assert "why" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        show(pd.DataFrame({"a": [1]}), out=str(tmp_path / "no" / "x.csv"))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_takes_an_empty_frame(kind: str) -> None:
    assert isinstance(FORMATS[kind](pd.DataFrame({"a": [], "b": []})), bytes)


def test_every_table_that_can_be_drawn_is(store: Store, tmp_path: Path) -> None:
    rows = [LABEL | {"system": "a", "episode": e, "seed": 0, "frame": f, "distance": f, "value": 1.0 + f + e,
                     "metric": "ssim"} for e in (0, 1) for f in (1, 2)]  # fmt: skip
    tables.append(store, "scores", rows, "x")
    tables.append(
        store, "steps", [{"run": "r", "step": s, "loss": 1.0 / (s + 1), "val_loss": 1.0} for s in (0, 1)], "x"
    )
    state = {f"state_{name}.layers.0.ssm": 1.0 for name in ("std", "rank")}
    tables.append(store, "steps", [{"run": "r", "step": 2, "loss": 0.3, "val_loss": 1.0, **state}], "y")
    trials = [
        {
            "sweep": "s",
            "trial": t,
            "state": "done",
            "objective": float(t),
            "better": "higher",
            "seconds": 1.0,
            "rate": t,
        }
        for t in range(8)
    ]
    tables.append(store, "trials", trials, "x")
    bench = [{"run": "b", "name": "scan", "case": c, "metric": "forward", "value": 0.5, "unit": "s"} for c in "ab"]
    tables.append(store, "bench", bench, "x")
    for table, kinds in PLOTS.items():
        for kind in kinds:
            main(table, store.uri, plot=str(tmp_path / f"{kind}.svg"), draw=kind, format="csv")
            text = " ".join(re.sub(r"<[^>]*>|\\", " ", html.unescape((tmp_path / f"{kind}.svg").read_text())).split())
            assert text.find(f"--draw {kind} --store") > text.find(f"longtake results {table} --plot") > 0
    with pytest.raises(UserError, match="unknown plot of steps 'stat'.*did you mean state"):
        main("steps", store.uri, plot="x.png", draw="stat")
    with pytest.raises(UserError, match="it names a plot of --plot FILE"):
        main("steps", store.uri, draw="state")
    with pytest.raises(UserError, match="there is no plot of runs"):
        main("runs", store.uri, plot="x.png")


def test_the_command_under_a_plot_draws_it_again(tmp_path: Path) -> None:
    """Run as a shell would, from elsewhere: the same picture, byte for byte."""
    store = open_store(tmp_path / "a store")
    tables.append(
        store, "steps", [{"run": "r", "step": s, "loss": 1.0 / (s + 1), "val_loss": 1.0} for s in (0, 1)], "x"
    )
    path = tmp_path / "it's.png"
    line = plot_command("steps", store, "step >= 0 and run == 'r'", str(path))
    with pytest.raises(SystemExit) as left:
        cli.main(shlex.split(line)[1:])
    assert not left.value.code
    first = path.read_bytes()
    path.unlink()
    with pytest.raises(SystemExit):
        cli.main(shlex.split(line)[1:])
    assert path.read_bytes() == first


@pytest.mark.parametrize("letters", [20, 40, 200])
def test_a_broken_command_is_the_same_to_a_shell(store: Store, letters: int) -> None:
    where = "run in ['a b', 'c'] and note == \"$HOME `x` \\\\\" and value  > 3"
    command = plot_command("scores", store, where, "it's.png")
    line = "printf '%s\\0' " + broken(command.replace("  ", " "), letters)
    said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.split("\0")[4] == where.replace("  ", " ")
    assert said.split("\0")[6] == "it's.png"


def test_a_plot_of_unlike_protocols_is_refused(store: Store) -> None:
    tables.append(store, "scores", scores(("a", 0, 1.0), protocol="p2"), "y")
    with pytest.raises(UserError, match="retrieval was scored under 2 protocols"):
        main("scores", store.uri, plot="x.png")


def test_compacting_prints_what_it_did(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tables.append(store, "scores", scores(("c", 0, 1.0)), "y")
    before = store.table("scores")
    compact.main([], store.uri)
    assert capsys.readouterr().out.splitlines() == [
        "table   files_before  files  parts  rows",
        "scores             2      1      2     5",
    ]
    pd.testing.assert_frame_equal(store.table("scores"), before)
    with pytest.raises(UserError, match="did you mean scores"):
        compact.main(["score"], store.uri)


def test_one_run_is_shown(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    class Settings(Config):
        steps: int = 3

    with RunRecord.start(store, "r", kind="train", name="maze", config=Settings(), seed=5):
        tables.append(store, "steps", [{"run": "r", "step": step, "loss": 0.5} for step in (1, 2)], "x")
    runs.main(store.uri, "r")
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if line}
    assert (lines["run"], lines["status"], lines["seed"], lines["last step"]) == ("r", "done", "5", "2")
    assert "retrieval  a                1  psnr    p1          15   5  63.53   10    20         2" in out
    assert out.endswith("config\nsteps: 3\n")
    runs.main(store.uri, "r", format="json")
    assert json.loads(capsys.readouterr().out)[0]["config"] == "steps: 3\n"
    with pytest.raises(UserError, match="unknown run 'q'"):
        runs.main(store.uri, "q")
    with pytest.raises(UserError, match="leave out"):
        runs.main(store.uri, "r", where="run == 'r'")


def retrieved(store: Store) -> None:
    """A model that is ahead of its rivals for four frames of six."""
    rows = [
        LABEL | {"run": run, "system": system, "episode": e, "seed": 0, "frame": d // 2, "distance": d}
        | {"value": 20.0 + e + (d < 5) * (system == "m"), "better": "higher"}
        for run, system in (("r", "m"), ("r", "m/wiped"), ("none", "copy_last"), ("none", "context_mean"))
        for e in range(4)
        for d in (1, 3, 5)
    ]  # fmt: skip
    tables.append(store, "scores", rows, "x")


def test_horizons_are_a_table_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path / "store")
    retrieved(store)
    main("scores", store.uri, horizon=True, format="csv", plot=str(tmp_path / "h.svg"))
    assert capsys.readouterr().out.splitlines() == [
        "system,run,checkpoint,protocol,horizon,low,high,reach,lost_to,episodes",
        "m,r,1,p1,4,4,4,5,copy_last,4",
    ]
    assert "longtake results scores --horizon --plot" in html.unescape((tmp_path / "h.svg").read_text())
    with pytest.raises(UserError, match="a horizon needs the PSNR of m/wiped too: longtake evaluate"):
        main("scores", store.uri, horizon=True, where="system != 'm/wiped'")
    with pytest.raises(UserError, match="no model is scored on it here"):
        main("scores", store.uri, horizon=True, where="run == 'none'")
    with pytest.raises(UserError, match="--horizon is of scores"):
        main("steps", store.uri, horizon=True)


def test_a_wide_table_is_that_of_papers(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A line per system, the best first, with its run and the frames it was trained on; a column per metric."""
    rows = scores(("a", 0, 0.2), ("a", 1, 0.4), ("b", 0, 0.9), ("b", 1, 0.9), metric="lpips_alex", better="lower")
    tables.append(store, "scores", rows, "lpips")
    floor = scores(("copy_last", 0, 12.0), ("copy_last", 1, 12.0), run="none")
    tables.append(store, "scores", floor, "floor")
    tables.append(store, "runs", [{"run": "r", "frames": 128000}], "r")
    main("scores", store.uri, by="system,run", wide=True, format="csv")
    told = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False)
    assert list(told.columns) == ["system", "run", "psnr", "lpips_alex", "protocol", "episodes", "frames"]
    assert told.values.tolist() == [
        ["a", "r", "15.00 ± 63.53", "0.300 ± 1.271", "p1", 2, "128000"],
        ["copy_last", "none", "12.00 ± 0.00", "", "p1", 2, ""],
        ["b", "r", "5.00 ± 0.00", "0.900 ± 0.000", "p1", 2, "128000"],
    ]
    other = scores(("a", 0, 1.0), ("a", 1, 1.0), protocol="p2")
    tables.append(store, "scores", other, "other")
    main("scores", store.uri, by="system", wide=True, where="metric == 'psnr'", format="csv")
    lines = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert lines.protocol.tolist() == ["p1", "p1", "p1", "p2"], "other protocols have lines of their own"
    with pytest.raises(UserError, match="--wide is of scores, a column per metric: leave out --horizon and --columns"):
        main("scores", store.uri, wide=True, horizon=True)
