"""What a folder of weights says of itself is written and read in one place, and stays readable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from longtake.models import description
from longtake.models.config import AutoencoderConfig, LayerConfig, ModelConfig
from longtake.models.description import AutoencoderDescription, Origin, WorldModelDescription

MODEL = ModelConfig(layers=[LayerConfig()])
WORLD = WorldModelDescription(model=MODEL, trained_frames=32, tokenizer="pixels", stride=2, shown_context=False)


@pytest.mark.parametrize("described", [WORLD, AutoencoderDescription(model=AutoencoderConfig())])
def test_what_is_written_is_read_back(described: description.Description, tmp_path: Path) -> None:
    described.write(tmp_path)
    assert description.read(tmp_path) == described and not description.says_origin(tmp_path)
    origin = Origin(run="20260101-000000-abcd", name="toy", dataset_name="mazes", code_version="0.1.0", step=7)
    described.exported(origin).write(tmp_path)
    again = description.read(tmp_path)
    assert again.origin == origin and description.says_origin(tmp_path)


def test_the_file_is_laid_out_as_ever(tmp_path: Path) -> None:
    """Other people's code reads it: names, order and indentation stay."""
    WORLD.write(tmp_path)
    told: dict[str, Any] = {"model": MODEL.model_dump(mode="json"), "trained_frames": 32, "tokenizer": "pixels"}
    told |= {"stride": 2, "shown_context": False}
    assert (tmp_path / "config.json").read_text() == json.dumps(told, indent=1)


def test_checkpoints_of_earlier_versions_say_less() -> None:
    model = {name: value for name, value in MODEL.model_dump(mode="json").items() if name != "kind"}
    described = description.parse(json.dumps({"model": model, "trained_frames": 8, "tokenizer": "autoencoder"}))
    assert isinstance(described, WorldModelDescription) and described.on_latents
    assert (described.stride, described.shown_context, described.origin) == (1, True, None)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{}", "holds no model, expected world_model or autoencoder"),
        ("[]", "holds a list, expected an object"),
        ('{"model": {"kind": "poem"}}', "holds poem, expected world_model"),
        (json.dumps({"model": MODEL.model_dump(mode="json")}), "trained_frames: Field required; tokenizer: Field"),
        (
            json.dumps({"model": {"layers": []}, "trained_frames": 0, "tokenizer": "pixels"}),
            "model.layers: List should",
        ),
        ("{", "damaged, it is no JSON: Expecting"),
    ],
)
def test_what_is_no_description_is_told_in_one_line(written: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(written)
    with pytest.raises(ValueError) as caught:
        description.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {told}") and "\n" not in str(caught.value)


def test_no_other_file_writes_or_reads_it() -> None:
    root = Path(__file__).parents[2]
    readers = [
        f"{path.relative_to(root)}:{number}"
        for room in ("models", "evals", "jobs", "platform/longtake")
        for path in sorted((root / room).rglob("*.py"))
        if path.name not in ("description.py", "mamba2_import.py")  # that one reads what another package wrote
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "json" in line and re.search(r'\bCONFIG\b|"config\.json"', line)
    ]
    assert not readers
