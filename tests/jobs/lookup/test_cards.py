"""What there is, from its cards: every registered name has one, and the lists are those of the registries."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.evals.registry import METRICS, TASKS
from longtake.jobs import cli
from longtake.jobs.clusters.submit import HERE_ONLY
from longtake.jobs.lookup import cards
from longtake.jobs.train.loggers import loggers
from longtake.models.mixers import local_mixers, mixers
from longtake.sources.environments import environments
from longtake.sources.formats import formats

ROOT = Path(__file__).parents[3]
LISTS = {
    "tasks": cards.tasks,
    "metrics": cards.metrics,
    "sources": cards.sources,
    "mixers": cards.mixers,
    "loggers": cards.loggers,
}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


def grouped(found: list[cards.Card]) -> list[list[str]]:
    groups = dict.fromkeys(card.group for card in found)
    return [[card.name for card in found if card.group == group] for group in groups]


def test_the_lists_are_those_of_the_registries() -> None:
    assert grouped(cards.tasks()) == [sorted(TASKS)]
    assert grouped(cards.metrics()) == [list(METRICS)]
    assert grouped(cards.sources()) == [sorted(environments()), sorted(formats())]
    assert grouped(cards.mixers()) == [sorted(mixers()), sorted(local_mixers())]
    assert grouped(cards.loggers()) == [sorted(loggers())]


@pytest.mark.parametrize("verb", LISTS)
def test_every_registered_one_has_a_card(verb: str) -> None:
    """Its first sentence is one, and says more than a name."""
    poor = [card.name for card in LISTS[verb]() if card.sentence[-1:] not in (".", "?", "!") or len(card.sentence) < 20]
    assert not poor


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("tasks", "retrieval Spatial retrieval: walk a path, then walk it back; what was seen must be seen again."),
        (
            "metrics",
            "drift How far the colours have gone from the truth's, grey levels, from 0, lower is better.",
        ),
        ("metrics", "bits What answers tell of which place is where at least, per clip."),
        ("sources", "webdataset WebDataset tars: every sample KEY.* is an episode."),
        ("mixers", "ssm Block-wise SSM (`ssm`): Mamba-2 over spatial tubes."),
        (
            "loggers",
            "tensorboard TensorBoard: event files in the run's folder, `runs/ID/watch/tensorboard/`, for `tensorboard "
            "--logdir`.",
        ),
    ],
)
def test_a_list_has_a_line_for_each(verb: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb) == 0
    assert line in [" ".join(told.split()) for told in capsys.readouterr().out.splitlines()]


def test_a_name_prints_its_card_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "retrieval") == 0
    card = ast.get_docstring(ast.parse((ROOT / "evals" / "tasks" / "retrieval.py").read_text()))
    assert capsys.readouterr().out == f"{card}\n"
    assert run("sources", "memory-maze") == 0  # played, and read
    out = capsys.readouterr().out
    assert "played" in out and "offline data set: an npz" in out
    assert run("mixers", "attention") == 0  # a mixer and a local one, of one file
    assert capsys.readouterr().out.count("Attention between frames") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("tasks retreival", "error: unknown task 'retreival' (did you mean retrieval?); there are: capacity, "),
        ("metrics pnsr", "error: unknown metric 'pnsr' (did you mean psnr?); there are: "),
        ("sources doom-mase", "error: unknown source 'doom-mase' (did you mean doom-maze?); there are: "),
        ("loggers mlfow", "error: unknown logger 'mlfow' (did you mean mlflow?); there are: "),
        ("mixers delt", "error: unknown mixer 'delt' (did you mean delta?); there are: "),
    ],
)
def test_a_wrong_name_meets_the_nearest(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(told) and err.count("\n") == 1


def test_lists_load_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "from longtake.jobs.lookup import cards\n"
        "assert cards.tasks() and cards.metrics() and cards.sources() and cards.mixers() and cards.loggers()\n"
        "print([name for name in ('torch', 'ray', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_lists_are_not_sent_to_a_cluster() -> None:
    assert LISTS.keys() <= set(HERE_ONLY)


def test_the_readme_names_them() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [verb for verb in LISTS if f"longtake {verb}" not in readme]
