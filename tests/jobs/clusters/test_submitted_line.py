"""The line of `longtake submit`: a config travels as it was resolved, and a wrong one is refused here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from typer.core import TyperGroup

from longtake.config import config_hash, load, shipped
from longtake.errors import UserError
from longtake.jobs import cli
from longtake.jobs.clusters import submit
from longtake.jobs.collect import command as collect
from longtake.jobs.evaluate import command as evaluate
from longtake.jobs.sweep import command as sweep
from longtake.jobs.train import command as train

LONGTAKE = cast(TyperGroup, typer.main.get_command(cli.app))


def sent(tmp_path: Path, *line: str, store: str = "s3://b/p") -> tuple[list[str], dict[str, str]]:
    """The arguments and files that a line becomes."""
    said = submit.read(LONGTAKE, list(line))
    files, _ = submit.resolve(said)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return submit.remote_arguments(LONGTAKE, said, store, files), files


def test_a_config_travels_as_it_was_resolved(tmp_path: Path) -> None:
    own = tmp_path / "here" / "mine.yaml"
    own.parent.mkdir()
    shutil.copy(train.CONFIGS / "tiny.yaml", own.parent / "tiny.yaml")
    for name in ("demo-block-ssm", "demo"):
        shutil.copy(train.CONFIGS / f"{name}.yaml", own.parent)
    for folder in ("families", "sizes"):
        shutil.copytree(train.CONFIGS.parent / folder, tmp_path / folder)
    own.write_text("base: tiny.yaml\nname: mine\n")
    arguments, _ = sent(tmp_path, "train", str(own), "--set", "steps=7", "--store", "x", "--resume", "r 1")
    assert arguments == ["train", "mine.yaml", "--store", "s3://b/p", "--resume", "r 1"]
    there = load(train.TrainConfig, tmp_path / "mine.yaml")
    assert config_hash(there) == config_hash(load(train.TrainConfig, own, ["steps=7"]))


@pytest.mark.parametrize(("verb", "module"), [("collect", collect), ("train", train), ("evaluate", evaluate)])
def test_every_shipped_config_survives_the_journey(verb: str, module: Any, tmp_path: Path) -> None:
    schema = getattr(module, f"{verb.capitalize()}Config")
    for name in shipped(module.CONFIGS):
        if (verb, name) == ("train", "demo"):
            continue  # the common part of two others, and no training by itself
        arguments, _ = sent(tmp_path, verb, name)
        there = load(schema, tmp_path / arguments[1])
        assert there == load(schema, name, search=module.CONFIGS), name


def test_a_config_that_a_sweep_names_by_path_travels_too(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(train.CONFIGS.joinpath("maze.yaml").read_text())
    shutil.copytree(train.CONFIGS.parent / "families", tmp_path.parent / "families", dirs_exist_ok=True)
    for name in shipped(train.CONFIGS):
        shutil.copy(train.CONFIGS / f"{name}.yaml", tmp_path)
    _, files = sent(tmp_path, "sweep", "tiny", "--set", f"train={base}")
    assert set(files) == {"tiny.yaml", "train-base.yaml"}
    assert load(sweep.SweepConfig, tmp_path / "tiny.yaml").train == "train-base.yaml"
    shipped_by_name = load(sweep.SweepConfig, "tiny", search=sweep.CONFIGS).train
    sent(tmp_path, "sweep", "tiny")
    assert load(sweep.SweepConfig, tmp_path / "tiny.yaml").train == shipped_by_name


def test_verbs_without_a_config_keep_what_was_said(tmp_path: Path) -> None:
    line = ("results", "scores", "--by", "task", "--where", "metric == 'psnr'")
    expected = ["results", "scores", "--store", "s3://b/p", "--where", "metric == 'psnr'", "--by", "task"]
    assert sent(tmp_path, *line) == (expected, {})
    exported = sent(tmp_path, "export", "run", "out", "--step", "0")[0]
    assert exported[exported.index("--step") + 1] == "0"


def test_a_wrong_line_is_refused_as_by_the_verb_itself() -> None:
    with pytest.raises(UserError, match="did you mean train"):
        submit.read(LONGTAKE, ["trian", "tiny"])
    with pytest.raises(UserError, match="unknown verb 'logs'"):
        submit.read(LONGTAKE, ["logs", "x"])
    with pytest.raises(typer.TyperException, match="--stor"):
        submit.read(LONGTAKE, ["train", "tiny", "--stor", "x"])
    with pytest.raises(UserError) as caught:
        submit.resolve(submit.read(LONGTAKE, ["train", "tiny", "--set", "stepz=3", "--set", "workers=x"]))
    assert len(caught.value.lines) == 2
