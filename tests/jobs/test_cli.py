"""The command line: its verbs and options are a promise; a user's mistake is one line and exit code 2."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.core import TyperGroup

from longtake import jobs
from longtake.errors import UserError
from longtake.jobs import cli
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables

Called = list[tuple[Any, ...]]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


ELSEWHERE = {"inspect": "datasets", "compact": "store"}
"""Verbs that lie in a folder with others: which."""


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a recorder in the place of a verb's module."""
    monkeypatch.delenv("LONGTAKE_STORE", raising=False)

    def replace(name: str, error: Exception | None = None) -> Called:
        called: Called = []

        def main(*arguments: Any, **options: Any) -> None:
            called.append((*arguments, options) if options else arguments)
            if error is not None:
                raise error

        parent, leaf = jobs, name
        if name in ELSEWHERE or (Path(jobs.__path__[0]) / name).is_dir():
            folder, leaf = ELSEWHERE.get(name, name), name if name in ELSEWHERE else "command"
            parent = importlib.import_module(f"longtake.jobs.{folder}")
        module = types.ModuleType(f"{parent.__name__}.{leaf}")
        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(parent, leaf, module, raising=False)
        return called

    return replace


@pytest.mark.parametrize(
    ("name", "line", "received"),
    [
        ("collect", "collect doom-maze", ("doom-maze", [], "store", False, {"brief": False})),
        (
            "collect",
            "collect m --set a=1 --set b.c=2 --dry-run",
            ("m", ["a=1", "b.c=2"], "store", True, {"brief": False}),
        ),
        ("train", "train maze --store s3://b/p", ("maze", [], "s3://b/p", False, None, False, {"brief": False})),
        ("train", "train maze --resume R", ("maze", [], "store", False, "R", False, {"brief": False})),
        ("train", "train maze --resume R --fork", ("maze", [], "store", False, "R", True, {"brief": False})),
        ("train", "train --resume R --brief", (None, [], "store", True, "R", False, {"brief": True})),
        ("export", "export R out --step 3", ("R", "out", 3, "store", "mit", None)),
        ("evaluate", "evaluate", ("default", [], "store", False, "latest", None, None, False, {"brief": False})),
        (
            "evaluate",
            "evaluate x --runs A,B --limit 3 --follow",
            ("x", [], "store", False, "A,B", None, 3, True, {"brief": False}),
        ),
        ("inspect", "inspect mazes --sheet a.png", ("mazes", "store", "a.png", None)),
        ("ingest", "ingest teco p --name n --set a=1 --dry-run", ("teco", "p", "n", ["a=1"], "store", True, False)),
        ("encode", "encode mazes --tokenizer T", ("mazes", "T", None, [], "store", False)),
        ("compact", "compact scores steps", (["scores", "steps"], "store")),
        ("compact", "compact", ([], "store")),
        ("report", "report A B --out r.html", (["A", "B"], "store", "r.html")),
        ("demo", "demo", ("demo", [], "store", False)),
        ("reproduce", "reproduce retrieval", ("retrieval", "micro", [], "store", False)),
        ("reproduce", "reproduce x --scale small --dry-run", ("x", "small", [], "store", True)),
    ],
)
def test_each_verb_is_handed_what_was_typed(verb: Any, name: str, line: str, received: tuple[Any, ...]) -> None:
    called = verb(name)
    assert run(*line.split()) == 0
    assert called == [received]


def test_the_store_comes_from_the_environment(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called = verb("collect")
    monkeypatch.setenv("LONGTAKE_STORE", "/elsewhere")
    run("collect", "m")
    run("collect", "m", "--store", "/here")
    assert [arguments[2] for arguments in called] == ["/elsewhere", "/here"]


def test_a_users_error_is_a_line_per_problem(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb("train", UserError("steps: too few", "lr: too\nhigh"))
    assert run("train", "maze") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: steps: too few\nerror: lr: too high\n")


def test_a_bug_keeps_its_trace(verb: Any) -> None:
    verb("train", RuntimeError("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["train", "maze"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("trian maze", "error: No such command 'trian'. Did you mean 'train'?"),
        ("train maze --sett a=1", "error: No such option: --sett"),
        ("train", "error: Missing argument 'CONFIG': a YAML path, or one that"),
        ("results score --store .", "error: unknown table 'score' (did you mean scores?)"),
        ("results --format cvs --store .", "error: unknown format 'cvs' (did you mean csv?)"),
        ("results --by task --columns run --store .", "error: --by and --columns exclude each other"),
        ("results --out x.doc --store .", "error: unknown format 'doc'"),
        ("runs --store nowhere", "error: no store at"),
        ("runs --store ftp://x", "error: store 'ftp://x': unknown scheme 'ftp'"),
    ],
)
def test_a_wrong_line_is_told_in_one_line(
    line: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(told)
    assert err.count("\n") == 1


VERBS = cast(TyperGroup, typer.main.get_command(cli.app)).commands
COMMANDS = [
    *(name for name, verb in VERBS.items() if not isinstance(verb, TyperGroup)),
    *(f"{name} {one}" for name, group in VERBS.items() if isinstance(group, TyperGroup) for one in group.commands),
]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == "longtake 0.1.0\n"


def test_all_verbs_fit_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on a line of its own or beside those that it belongs to, and none is cut short."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run() == run("--help") == 0
    text = capsys.readouterr().out
    lines = text[len(text) // 2 :].splitlines()
    assert len(lines) <= 40
    assert not [line for line in lines[1:] if len(line) > 80 or line.endswith("...")]
    shown = [re.fullmatch(r"(?:[a-z ]{8})  (?:(\w+)  +[A-Z].*|(\w+(?:, \w+)+): \w.*)", line) for line in lines]
    listed = [name for one in shown if one for name in (one[1] or one[2]).split(", ")]
    assert sorted(listed) == sorted(VERBS) and len(listed) > 35
    (example,) = [line for line in lines if "Example: longtake demo" in line]
    assert "longtake VERB --help" in example and "--version, --install-completion" in lines[-3]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verbs_help_fits_a_screen_and_shows_what_to_type(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it shows is read by the verb's own parser."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*name.split(), "--help") == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 40
    shown = re.findall(rf"^ +longtake ({name}\b.*)$", text.split("Example")[-1], re.MULTILINE)
    assert shown
    command: Any = typer.main.get_command(cli.app)
    for word in name.split():
        command = command.commands[word]
    for line in shown:
        command.make_context(name, shlex.split(line)[len(name.split()) :])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def test_runs_lists_them(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    from longtake.config import Config
    from longtake.tables.run_record import RunRecord

    class Settings(Config):
        steps: int = 1

    for name in ("b-run", "a-run"):
        RunRecord.start(store, name, kind="train", name="maze", config=Settings()).finish("failed", "it broke")
    assert run("runs", "--store", store.uri) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "kind", "name", "status", "started", "minutes", "sessions", "reason"]
    assert first.startswith("a-run")
    assert second.split()[:4] == ["b-run", "train", "maze", "failed"]
    assert second.endswith("it broke")


def test_an_empty_table_is_told_beside_the_output(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tables.append(store, "steps", [], "x")
    assert run("results", "scores", "--store", store.uri, "--format", "csv") == 0
    out, err = capsys.readouterr()
    assert out == "task,system,run,checkpoint,metric,protocol,mean,se,ci95,low,high,episodes\n"
    assert "has no rows yet" in err
    assert run("runs", "--store", store.uri) == 0
