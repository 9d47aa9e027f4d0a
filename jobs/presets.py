"""Sizes and families of models: the shipped YAML presets, found by name.

A size alone is a block-wise SSM; a family on top replaces its list of layers. In a config of one's own that is
`base: [../sizes/small.yaml, ../families/mamba.yaml]`.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from longtake.config import Config, load, shipped
from longtake.models.config import LayerConfig, ModelConfig

SIZES = Path(__file__).parent / "configs" / "sizes"
FAMILIES = Path(__file__).parent / "configs" / "families"


class SizeConfig(Config):
    """What a file in configs/sizes/ holds."""

    model: ModelConfig


class _Layers(Config):
    layers: list[LayerConfig]


class FamilyConfig(Config):
    """What a file in configs/families/ holds."""

    model: _Layers


def size(name: str) -> ModelConfig:
    """The shipped size of that name, a block-wise SSM.

    Raises:
        UserError: no such size.
    """
    return load(SizeConfig, name, search=SIZES).model


def families() -> list[str]:
    """Names of the shipped families."""
    return shipped(FAMILIES)


def layers_of(family: str) -> list[LayerConfig]:
    """The list of layers of a shipped family.

    Raises:
        UserError: no such family.
    """
    return load(FamilyConfig, family, search=FAMILIES).model.layers


def in_family(model: ModelConfig, family: str) -> ModelConfig:
    """The model with the layers of a shipped family, as many as before.

    Raises:
        UserError: no such family.
        ValueError: a layer of the family does not fit the model's frames.
    """
    layers = [layer.model_dump() for layer in layers_of(family)]
    settings = model.model_dump() | {"layers": layers, "depth": len(model.stack)}
    return ModelConfig.model_validate(settings)


def in_words(model: ModelConfig) -> str:
    """The layers of a model from first to last: `3 layers: 2 x ssm 1x1 + attention 4, ssm 2x2 + attention 4`."""

    def named(layer: LayerConfig) -> str:
        kinds = (layer.mixer_class, layer.local_class)
        return " + ".join(kind.words(model, layer) for kind in kinds if kind is not None)

    runs = [(name, len(list(same))) for name, same in groupby(named(layer) for layer in model.stack)]
    listed = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in runs)
    return f"{len(model.stack)} layers: {listed}"
