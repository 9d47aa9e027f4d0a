"""Every field of every config is explained: meaning, unit, default, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.config import dump, load
from longtake.errors import UserError
from longtake.jobs.lookup import explain
from longtake.jobs.train.command import CONFIGS
from longtake.jobs.train.config import TrainConfig

KNOWN = explain.entries(options=True)


def one(path: str, kind: str = "") -> explain.Entry:
    (found,) = [entry for entry in KNOWN if entry.path == path and (not kind or kind in entry.kinds)]
    return found


def test_every_field_has_a_meaning_and_every_number_a_unit() -> None:
    assert len(KNOWN) > 300 and {entry.path.split(".")[0] for entry in KNOWN} == set(explain.ROOTS)
    assert not [entry.path for entry in KNOWN if len(entry.meaning.split()) < 2]
    numbers = [entry for entry in KNOWN if "number" in entry.allowed and not entry.section]
    assert len(numbers) > 150
    assert not [entry.path for entry in numbers if not entry.unit]
    assert not [entry.path for entry in KNOWN if not entry.default or not entry.allowed]


def test_what_is_said_of_a_field_is_what_its_class_says() -> None:
    window = one("train.model.window")
    assert (window.unit, window.default, window.allowed) == ("frames", "6", "whole number from 1")
    decay = one("train.engine.decay")
    assert (decay.unit, decay.default, decay.allowed) == ("share", "1.0", "number above 0 to 1")
    assert one("train.steps").default == "required"
    assert one("train.model.layers").section and one("train.engine").section
    assert one("train.engine.zero").allowed == "0, 1, 2, 3"
    assert one("train.temporal_block").allowed == "whole number from 1 or none"


def test_kinds_of_a_section_are_told_apart_where_they_differ() -> None:
    assert one("train.model.latent_channels").kinds == ("autoencoder",)
    assert one("train.data.clip", "world_model").default == "palindrome"
    assert one("train.data.clip", "autoencoder").default == "forward"
    assert one("collect.source.braid").kinds == ("doom-maze",)
    assert one("train.model.layers.options.half_lives").kinds == ("delta", "ssm")


@pytest.mark.parametrize("path", ["train.model.window", "model.window", "train.model.layers.0.window"])
def test_a_field_is_found_by_its_path(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(path)
    told = capsys.readouterr().out
    assert "unit       frames" in told and "on resume  as before" in told


def test_a_name_alone_finds_all_that_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main("lr")
    told = capsys.readouterr().out
    assert told.startswith("train.engine.lr\n") and "set by" in told and "train/demo (0.003)" in told
    explain.main("steps")
    heads = [line for line in capsys.readouterr().out.splitlines() if line[:1].strip()]
    assert {"train.steps", "train.diffusion.steps"} & set(heads) == {"train.steps"} and len(heads) > 4


def test_a_section_lists_what_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main("train.engine")
    assert "    zero = 1: " in capsys.readouterr().out
    explain.main("sweep")
    assert "  trials = required: " in capsys.readouterr().out


def test_without_a_field_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(explain.entries()) and max(map(len, lines)) <= 118


@pytest.mark.parametrize(
    ("path", "near"), [("train.model.windo", "train.model.window"), ("trian.steps", "train.steps")]
)
def test_a_wrong_name_meets_the_nearest(path: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}"):
        explain.main(path)


def test_the_page_is_what_the_classes_say() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference.md"
    assert page.read_text() == explain.reference(), "make reference"


def test_a_config_can_be_shown_by_what_differs_from_the_defaults() -> None:
    config = load(TrainConfig, "tiny", ["engine.lr=0.5", "data.max_replaced=0.01"], search=CONFIGS)
    told = dump(config, changes=True)
    assert "lr: 0.5" in told and "max_replaced" not in told and len(told) < len(dump(config)) / 2
