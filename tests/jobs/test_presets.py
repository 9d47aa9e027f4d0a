"""Sizes and families: what they say they are, and that any two compose; a family is matched to another's parameters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.config import load, shipped
from longtake.errors import UserError
from longtake.jobs.presets import SIZES, families, in_family, in_words, size
from longtake.jobs.train.command import CONFIGS
from longtake.jobs.train.config import WorldModelTraining
from longtake.models.analysis.parameter_matching import TOLERANCE, count_parameters, match_parameters
from longtake.models.config import ModelConfig

MILLIONS = {"tiny": (0.1, 0.05), "small": (5, 0.05), "base": (30, 0.05), "lm130": (219, 0.01), "paper": (194, 0.01)}
FAMILY_NAMES = ["block_delta", "block_ssm", "block_ssm_pose", "blocks_1", "causal_full", "causal_window"]
FAMILY_NAMES += ["mamba", "mamba_local"]


def blocks(model: ModelConfig) -> list[int]:
    return [model.layer_block(layer)[0] for layer in model.stack]


def test_the_shipped_presets_are_these() -> None:
    assert set(shipped(SIZES)) == set(MILLIONS)
    assert families() == FAMILY_NAMES


@pytest.mark.parametrize("name", MILLIONS)
def test_a_size_has_the_parameters_it_says(name: str) -> None:
    millions, tolerance = MILLIONS[name]
    assert count_parameters(size(name)) == pytest.approx(millions * 1e6, rel=tolerance)


def test_the_paper_model_is_the_papers() -> None:
    paper = size("paper")
    assert blocks(paper) == [1, 1, 1, 1, 2, 2, 4, 8]
    assert (paper.grid, paper.chunk, paper.d_state, paper.condition_dim) == ((8, 8), 5, 256, 512)


@pytest.mark.parametrize(
    ("config", "expected"), [("demo-block-ssm", [1, 1, 2]), ("tiny", [1, 1, 2]), ("maze", [1, 1, 2])]
)
def test_a_short_model_has_the_list_thinned(config: str, expected: list[int]) -> None:
    assert blocks(load(WorldModelTraining, config, search=CONFIGS).model) == expected


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_family_replaces_the_layers_of_a_size_in_a_file(family: str, tmp_path: Path) -> None:
    here = os.path.relpath(SIZES.parent, tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: [{here}/train/tiny.yaml, {here}/sizes/small.yaml, {here}/families/{family}.yaml]\n")
    model = load(WorldModelTraining, mine).model
    assert model.stack == in_family(size("small"), family).stack
    assert (model.dim, len(model.stack)) == (160, 8)


@pytest.mark.parametrize("name", ["tiny", "small", "base", "paper"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_is_matched_in_parameters(family: str, name: str) -> None:
    target = size(name)
    matched = match_parameters(in_family(target, family), target)
    assert count_parameters(matched) == pytest.approx(count_parameters(target), rel=TOLERANCE)
    # In the smallest, the keys that the delta rule's heads have each for themselves are a large share.
    assert 0.4 <= matched.feed_forward / target.feed_forward <= 2.5


def test_a_model_that_cannot_be_matched_is_told_the_nearest() -> None:
    target = size("tiny")
    wide = in_family(ModelConfig.model_validate(target.model_dump() | {"dim": 256}), "mamba")
    with pytest.raises(ValueError, match=r"cannot be reached within 3%.*nearest is [\d,]+ with depth 1 and feed_for"):
        match_parameters(wide, target)


def test_an_unknown_preset_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="smal.*did you mean small"):
        size("smal")
    with pytest.raises(UserError, match="mambo.*did you mean mamba"):
        in_family(size("tiny"), "mambo")


def test_the_demos_twin_is_its_model_in_all_but_memory() -> None:
    twin, model = (load(WorldModelTraining, name, search=CONFIGS) for name in ("demo-memoryless", "demo-block-ssm"))
    assert (twin.diffusion.null_context, model.diffusion.null_context) == (1.0, 0.1)
    diffusion = twin.diffusion.model_copy(update={"null_context": 0.1})
    assert twin.model_copy(update={"name": model.name, "diffusion": diffusion}) == model


def test_layers_in_words() -> None:
    assert in_words(size("tiny")) == "3 layers: 2 x ssm 1x1 + attention 4, ssm 2x2 + attention 4"
    assert in_words(in_family(size("paper"), "causal_full")) == "8 layers: 8 x full attention"
