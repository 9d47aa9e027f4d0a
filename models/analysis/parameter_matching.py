"""Models of another family with the same number of parameters: counting, and solving for depth and width."""

from __future__ import annotations

import math

import torch

from longtake.models.config import ModelConfig
from longtake.models.world_model import WorldModel

TOLERANCE = 0.03
"""How far a matched model's number of parameters may be from the target's, as a share of it."""
DEEPEST = 4
"""Times the target's depth: no matched model is deeper."""


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters of a config's model, without making its weights."""
    with torch.device("meta"):
        model = WorldModel(config)
    return sum(parameter.numel() for parameter in model.parameters())


def match_parameters(config: ModelConfig, target: ModelConfig) -> ModelConfig:
    """The config with the depth and the feed-forward width that bring it to the target's number of parameters.

    Of all depths that can be matched, the one whose feed-forward width is nearest (in ratio) to the target's.

    Raises:
        ValueError: no depth and width come within 3 %; the nearest is named.
    """
    wanted = count_parameters(target)
    if _as_built(config) == _as_built(target):
        return config
    reachable = []
    for depth in range(1, DEEPEST * len(target.stack) + 1):
        solved = _solve_width(config, depth, wanted)
        if solved is None:
            break  # deeper ones are larger still
        reachable.append(solved)
        if solved[0].feed_forward <= target.feed_forward:
            break  # deeper ones are narrower still
    fitting = [solved for solved in reachable if abs(solved[1] / wanted - 1) <= TOLERANCE]
    if not fitting:
        raise ValueError(_unreachable(config, wanted, reachable))
    return min(fitting, key=lambda solved: abs(math.log(solved[0].feed_forward / target.feed_forward)))[0]


def _as_built(config: ModelConfig) -> dict[str, object]:
    """What a config builds: its settings with the list of layers as it is stacked."""
    return {**config.model_dump(exclude={"depth"}), "layers": [layer.model_dump() for layer in config.stack]}


def _solve_width(config: ModelConfig, depth: int, wanted: int) -> tuple[ModelConfig, int] | None:
    """At a depth, the config nearest to the wanted count and its count; None where even the narrowest is too large.

    The count is linear in the hidden width of the feed-forward nets.
    """
    narrowest = _with(config, depth, 1)
    least = count_parameters(narrowest)
    each = count_parameters(_with(config, depth, 2)) - least
    hidden = 1 + round((wanted - least) / each)
    if hidden < 1:
        return (narrowest, least) if depth == 1 else None
    return _with(config, depth, hidden), least + (hidden - 1) * each


def _with(config: ModelConfig, depth: int, hidden: int) -> ModelConfig:
    """The config with a number of layers and of hidden units per feed-forward net, checked anew."""
    settings = config.model_dump() | {"depth": depth, "feed_forward": hidden / config.dim}
    return ModelConfig.model_validate(settings)


def _unreachable(config: ModelConfig, wanted: int, reachable: list[tuple[ModelConfig, int]]) -> str:
    nearest, count = min(reachable, key=lambda pair: abs(pair[1] - wanted))
    return (
        f"parameters: {wanted:,} cannot be reached within {TOLERANCE:.0%} with dim {config.dim}; the nearest is "
        f"{count:,} with depth {nearest.depth} and feed_forward {nearest.feed_forward:.3g}: change dim"
    )
