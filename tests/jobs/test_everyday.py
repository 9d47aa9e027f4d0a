"""Forty questions and tasks of every day: each is two commands at most, or three lines of Python.

The first entry of each is the question, then what is typed, then what the answer holds (a regular expression).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import longtake
from longtake.jobs import cli
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from tests.jobs.filled_store import fill

COMMANDS: list[tuple[str, str, str]] = [
    ("what datasets are there?", "datasets", r"halls +10 +40 +8x8x3 +10 +no"),
    ("how large is each thing?", "du", r"dataset +mazes +[\d.]+ kB"),
    ("is a dataset whole?", "verify mazes", "mazes"),
    ("what does it look like?", "inspect mazes", "contact sheet: .*reports/mazes.png"),
    ("what ran, and how does it fare?", "runs", r"a1 +train +base +done"),
    (
        "what failed, and why?",
        "runs --where \"status == 'failed'\"",
        "r1 +train +search-000 +failed .*the disk is full",
    ),
    ("what began since a day?", "runs --where \"started > '2020-01-01'\"", "b1 +train +latent"),
    ("what was the newest run told?", "runs latest", "tokenizer: pixels"),
    ("what was trained on mazes?", "runs --where \"dataset_name == 'mazes'\"", "a1 +train +base"),
    ("mark a run", "tag base good; runs --tag good", "a1 .* good\n"),
    ("write down why", "note base 'lr too high'; runs base", "note +lr too high"),
    ("call it otherwise", "rename base final; runs final", "name +final"),
    ("what would removing it free?", "rm latent --dry-run", "5.0 kB would be freed; nothing is removed"),
    ("remove a run", "rm latent; runs --where \"status == 'removed'\"", "b1 .* removed .*files were removed on"),
    ("clean up after kills", "gc", "freed"),
    ("make the tables quick", "compact", "scores"),
    ("what does a field mean?", "explain model.window", "Frames that the local mixer of a layer sees"),
    ("what is a default?", "explain lr", r"default +0\.001"),
    ("what may a field be?", "explain train.data.clip", "allowed +forward, palindrome"),
    ("what can a sweep say?", "explain sweep", "trials = required"),
    ("which configs are there?", "configs", "demo-block-ssm +Block-wise scans remember"),
    ("what is in one?", "configs train/demo-memoryless", "null_context: 1.0"),
    ("what does a config change?", "collect texture-torus-tiny --brief", "name: texture-torus-tiny"),
    ("what would it make?", "collect texture-torus-tiny --dry-run", "episodes"),
    ("what can be asked of a model?", "tasks", "revisit +Revisit: places that were shown are asked again"),
    ("what does a task ask?", "tasks retrieval", "walk"),
    ("which way is a metric good?", "metrics lpips_alex", "lower"),
    ("how good is each system?", "results scores --by system --sort -mean", "ssm +psnr"),
    (
        "which is better, and how surely?",
        "compare base context_mean",
        "95 % interval .* paired over 6 episodes: base has more",
    ),
    (
        "beyond the windows alone?",
        "compare ssm copy_last --beyond 3 --metric psnr",
        "at distances above 3, 95 % interval",
    ),
    ("how far does it remember?", "results scores --horizon", "ssm +a1"),
    ("draw that", "results scores --plot p.png --where \"task == 'retrieval'\"", "ssm"),
    ("as in a paper", "results scores --wide", "psnr"),
    ("for a spreadsheet", "results scores --format csv --out s.csv", ""),
    ("how did the loss fall?", "results steps --where \"run == 'a1'\" --columns step,loss", "3 +0.25"),
    ("held-out loss every 2 steps?", "results steps --every 2 --columns run,step,val_loss", r"a1 +2 +0\.7"),
    ("the loss by a setting?", "results steps --by config.tokenizer", "pixels"),
    ("how many frames in all?", "results steps --by run --sum frames", "sum_frames"),
    ("which trial won?", "results trials --sort -final", "s1 +0 +r1 +done"),
    ("is this machine fit?", "doctor --no-ray", "ok +packages"),
]
PYTHON: list[tuple[str, str, str]] = [
    (
        "rows as pandas",
        "store.table('scores', where=\"metric == 'psnr'\", columns=['system', 'value'])",
        "context_mean",
    ),
    ("scores of the newest checkpoints", "longtake.latest(store)", "retrieval"),
    ("the best checkpoint of each task", "longtake.best(store, metric='psnr')", "ssm"),
    ("two systems with an interval", "longtake.compare(store, 'ssm', 'context_mean', beyond=2)", "difference"),
    ("what does longtake have?", "dir(longtake)", "open_store"),
    ("losses beside settings", "store.table('steps').merge(store.table('runs')[['run', 'name']], on='run')", "base"),
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The folder `store` here, with everything in it that a week leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGTAKE_STORE", "store")
    store = fill(open_store("store"))
    label = {"checkpoint": 9, "task": "retrieval", "protocol": "p", "dataset": "mazes", "seed": 0}
    means = {
        "ssm": ("a1", 17.0),
        "ssm/wiped": ("a1", 12.0),
        "context_mean": ("none", 14.0),
        "copy_last": ("none", 11.0),
    }
    for system, (run, mean) in means.items():
        rows = [
            label | {"run": run, "system": system, "episode": episode, "frame": distance, "distance": distance}
            | {"metric": "psnr", "better": "higher", "value": mean - distance / 10 + episode % 3 / 5}
            for episode in range(6)
            for distance in (1, 3, 5)
        ]  # fmt: skip
        tables.append(store, "scores", rows, f"cells/{system.replace('/', '-')}")
    store.write_bytes("protocols/p.json", json.dumps({"task": "retrieval"}).encode())
    steps = [
        {"run": "a1", "step": n, "frames": 64, "loss": 1 / (n + 1)} | ({"val_loss": 0.7} if n == 1 else {})
        for n in range(4)
    ]
    tables.append(store, "steps", steps, "a1")
    return store


def test_there_are_forty() -> None:
    questions = [question for question, *_ in (*COMMANDS, *PYTHON)]
    assert len(set(questions)) == len(questions) >= 40
    assert all(typed.count(";") < 2 for _, typed, _ in COMMANDS)
    assert all(lines.count("\n") < 3 for _, lines, _ in PYTHON)


@pytest.mark.parametrize(("question", "typed", "answer"), COMMANDS, ids=[question for question, *_ in COMMANDS])
def test_a_command_or_two_answer_it(
    store: Store, question: str, typed: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = []
    for line in re.split(r"; (?=[a-z]+ )", typed):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(shlex.split(line))
        codes.append(left.value.code or 0)
    told = capsys.readouterr()
    assert not any(codes) or line.startswith("doctor"), told.err
    assert re.search(answer, told.out), told.out
    assert "s.csv" not in typed or "ssm" in Path("s.csv").read_text()
    assert "p.png" not in typed or Path("p.png").stat().st_size > 10_000


@pytest.mark.parametrize(("question", "line", "answer"), PYTHON, ids=[question for question, *_ in PYTHON])
def test_a_line_or_three_of_python_answer_it(store: Store, question: str, line: str, answer: str) -> None:
    found = eval(line, {"longtake": longtake, "store": longtake.open_store("store")})
    assert re.search(
        answer, found if isinstance(found, str) else str(found.to_csv() if hasattr(found, "to_csv") else found)
    )
