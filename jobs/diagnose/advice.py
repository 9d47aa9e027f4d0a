"""What to change, and why: rules over facts, each of which names the setting, the figures behind it, and its price."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from longtake.jobs.diagnose.facts import Facts, megabytes
from longtake.jobs.presets import in_family
from longtake.models.analysis.cost import Costs, crossing
from longtake.models.config import LayerConfig, ModelConfig

NEAR_TRAINED = 0.75
"""Of the farthest distance trained on: who remembers so far was never asked for more."""
FULL_RANK, LOW_RANK = 0.6, 0.15
"""Of the rank that a state can have: above the one it is crowded, below the other most of it carries nothing."""
DRIFT = 2.0
"""Times by which a state's spread may grow over the second half of a training."""
FALLING = 0.02
"""Share by which the held-out loss may fall over the last fifth of a training that is called learnt."""
SEAM_DB = 1.0
"""Jumps across the borders of blocks above those of the truth, from which on a generation falls apart."""


@dataclass(frozen=True)
class Advice:
    """One change: the setting, what to, why, and what it costs where that can be counted."""

    setting: str
    change: str
    why: str
    price: str = ""

    def line(self) -> str:
        """For people."""
        return f"change {self.setting}: {self.change}; because {self.why}" + (f" ({self.price})" if self.price else "")


def advise(facts: Facts) -> list[Advice]:
    """Everything that the facts speak for; what is not measured speaks for nothing."""
    return [advice for rule in RULES for advice in rule(facts)]


def _scans(model: ModelConfig) -> list[LayerConfig]:
    return [layer for layer in model.stack if layer.scan_class]


def _full_ranks(model: ModelConfig) -> dict[str, int]:
    """By the name of its state, the largest rank that a layer's can have; states that are no matrices left out."""
    kinds = ((number, layer.scan_class) for number, layer in enumerate(model.stack))
    ranks = {f"layers.{number}.ssm": kind.full_rank(model) for number, kind in kinds if kind is not None}
    return {name: rank for name, rank in ranks.items() if rank is not None}


def _short(facts: Facts) -> bool:
    """Whether the end of its memory was found."""
    return facts.horizon is not None and facts.horizon.lost_to is not None


def _steps(facts: Facts) -> Iterator[Advice]:
    """A training that was still learning when it ended."""
    column = next((name for name in ("val_loss", "loss") if name in facts.steps), None)
    if column is None or len(losses := facts.steps[column].dropna()) < 10:
        return
    fifth = len(losses) // 5
    before, last = losses.iloc[-2 * fifth : -fifth].mean(), losses.iloc[-fifth:].mean()
    if before > 0 and 1 - last / before > FALLING:
        fell = (
            f"its {column} fell by {100 * (1 - last / before):.0f} % over the last fifth of {facts.config.steps} steps"
        )
        yield Advice(
            "steps", f"{2 * facts.config.steps}", f"{fell}: it has not learnt all it can", "twice the training"
        )


def _length(facts: Facts) -> Iterator[Advice]:
    """A memory that ends where training ended."""
    horizon, farthest = facts.horizon, facts.farthest
    if horizon is None or horizon.frames == 0:
        return
    if horizon.lost_to is None and horizon.reach > NEAR_TRAINED * farthest:
        why = f"it remembers all of the {horizon.reach} frames that were asked, and was trained on {facts.trained}"
    elif _short(facts) and horizon.frames >= NEAR_TRAINED * farthest:
        why = f"it remembers {horizon.frames} frames, and its longest clips, of {facts.trained}, never asked for more"
    elif horizon.lost_to is None:
        why = f"it remembers all of the {horizon.reach} frames that were asked: ask for more (context) before anything"
        yield Advice("the protocol's context", f"{2 * (horizon.reach + 1)}", why)
        return
    else:
        return
    yield Advice(
        "data.curriculum", f"a last stage of {2 * facts.trained} frames", why, "training costs as much per frame"
    )


def _recipe(facts: Facts) -> Iterator[Advice]:
    """A training that seldom needs memory."""
    if _short(facts) and facts.config.diffusion.clean_prefix < 0.5:
        share = facts.config.diffusion.clean_prefix
        why = f"only {share:.0%} of its clips begin clean, so little in training needs what was shown"
        yield Advice("diffusion.clean_prefix", "0.5 or more", why)


def _block(facts: Facts) -> Iterator[Advice]:
    """What carries over time, and past how many tokens."""
    if not _short(facts) or not facts.fresh.forgets:
        return
    model, scans = facts.model, _scans(facts.model)
    assert facts.horizon is not None
    if not scans:
        ours = Costs(in_family(model, "block_ssm"))
        price = f"a state of {megabytes(ours.carried(1)['state'])} per stream, whatever the length"
        why = f"nothing in it carries further than its windows, {facts.fresh.window} frames layer upon layer"
        yield Advice("model.layers", "block-wise scans (base: ../families/block_ssm.yaml)", why, price)
        return
    tokens = min(math.prod(model.layer_block(layer)) for layer in scans)
    if tokens > 1:
        smaller = _with_small_blocks(model)
        now, then = facts.costs.carried(1)["state"], Costs(smaller).carried(1)["state"]
        why = (
            f"its memory ends after {facts.horizon.frames} frames, and even in its smallest scan a place is seen again "
            f"{tokens} tokens later, each of which fades what is carried"
        )
        price = f"its state grows from {megabytes(now)} to {megabytes(then)}"
        yield Advice("model.layers.0.spatial_block", "[1, 1], in the first half of the layers", why, price)


def _with_small_blocks(model: ModelConfig) -> ModelConfig:
    """The model with 1 x 1 blocks in the first half of its layers, where they scan."""
    layers = [
        layer.model_copy(update={"spatial_block": [1, 1]}) if number < (len(model.stack) + 1) // 2 else layer
        for number, layer in enumerate(model.stack)
    ]
    settings = model.model_dump() | {"layers": [layer.model_dump() for layer in layers], "depth": None}
    return ModelConfig.model_validate(settings)


def _seams(facts: Facts) -> Iterator[Advice]:
    """The other side of small blocks."""
    scans = _scans(facts.model)
    if facts.seams is None or facts.seams < SEAM_DB or not scans:
        return
    largest = max(math.prod(facts.model.layer_block(layer)) for layer in scans)
    if largest < math.prod(facts.model.grid):
        why = (
            f"its generations jump by {facts.seams:.1f} dB more across the borders of blocks than the truth does, and "
            f"no scan sees more than {largest} tokens of a frame"
        )
        yield Advice("model.layers.-1.spatial_block", "frame, in the last layer", why, "less state, too")


def _window(facts: Facts) -> Iterator[Advice]:
    """States that add nothing to what windows see."""
    horizon, reach = facts.horizon, facts.fresh.window
    if not _short(facts) or horizon is None or not _scans(facts.model) or horizon.frames > reach or reach == 1:
        return
    if horizon.lost_to is not None and horizon.lost_to.endswith("/wiped"):
        why = (
            f"its memory ends after {horizon.frames} frames, within the {reach} that its windows reach layer upon "
            "layer, and wiped it is as good: its states carry nothing yet, and windows let it do without"
        )
        yield Advice("model.window", f"{max(1, facts.model.window // 2)}", why, "a smaller cache")


def _d_state(facts: Facts) -> Iterator[Advice]:
    """The width of the state against the rank that is used."""
    model, full = facts.model, _full_ranks(facts.model)
    ranks = {layer: float(values.iloc[-1]) for layer, values in facts.state("rank").items() if layer in full}
    if not ranks or facts.horizon is None:
        return
    layer = max(ranks, key=ranks.__getitem__)
    most = full[layer]
    state = facts.costs.carried(1)["state"]
    used = f"the state of {layer} has rank {ranks[layer]:.1f}, more than any other's, of at most {most}"
    if _short(facts) and ranks[layer] >= FULL_RANK * most:
        price = f"its state doubles to {megabytes(2 * state)}"
        yield Advice("model.d_state", f"{2 * model.d_state}", f"{used}: it is crowded, and memory ends", price)
    elif ranks[layer] <= LOW_RANK * most and model.d_state >= 16:
        price = f"its state halves to {megabytes(state / 2)}; score it again"
        yield Advice("model.d_state", f"{model.d_state // 2}", f"{used}: most of its width carries nothing", price)


def _regularise(facts: Facts) -> Iterator[Advice]:
    """A state that grows and grows."""
    memory = facts.config.memory
    for layer, values in facts.state("std").items():
        if len(values) < 4:
            continue
        middle, last = float(values.iloc[len(values) // 2]), float(values.iloc[-1])
        if middle > 0 and last / middle > DRIFT:
            why = f"the spread of {layer}'s state grew {last / middle:.1f} times over the second half of the training"
            weight = 0.01 if memory.regularise == 0 else 3 * memory.regularise
            yield Advice("memory.regularise", f"{weight:g}", f"{why}, and what drifts is misread later")
            return
    if memory.regularise and _short(facts) and facts.horizon is not None and facts.horizon.frames == 0:
        why = f"nothing is remembered, and a pull of {memory.regularise:g} towards N(0, 1) may be why"
        yield Advice("memory.regularise", "0", why)


def _cost(facts: Facts) -> Iterator[Advice]:
    """A state that is dearer than keeping every frame."""
    horizon, full = facts.horizon, facts.full
    if horizon is None or full is None or not _scans(facts.model):
        return
    frames = max(1, horizon.frames)
    ours, theirs = facts.costs.carried(frames)["total"], full.carried(frames)["total"]
    if ours <= theirs:
        return
    since = crossing(lambda n: facts.costs.carried(n)["total"], lambda n: full.carried(n)["total"])
    when = "never" if since is None else f"from frame {since:,} on"
    why = (
        f"for the {horizon.frames} frames that it remembers it carries {megabytes(ours)}, and attention to every frame "
        f"would carry {megabytes(theirs)}: its state pays off {when}"
    )
    kinds = [kind for layer in _scans(facts.model) if (kind := layer.scan_class)]
    settings = " or ".join(dict.fromkeys(setting for kind in kinds for setting in kind.state_settings))
    yield Advice(f"model.{settings}", "a smaller state, or a memory of more frames", why)


RULES: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    _steps,
    _length,
    _recipe,
    _block,
    _window,
    _d_state,
    _regularise,
    _seams,
    _cost,
)
"""In the order in which they are told: what to do first comes first."""
