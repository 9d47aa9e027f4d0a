"""`longtake diagnose`: each rule speaks where its failure was planted, and holds its peace where it was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longtake.config import dump, load
from longtake.errors import UserError
from longtake.evals.memory_horizon import Horizon
from longtake.jobs.cli import main as cli
from longtake.jobs.diagnose.advice import Advice, advise
from longtake.jobs.diagnose.facts import Facts, gather, side_by_side
from longtake.jobs.train.command import CONFIGS
from longtake.jobs.train.config import WorldModelTraining
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables

RUN = "20261121-041233-k3f9"


def training(*overrides: str) -> WorldModelTraining:
    """The demo's block-wise SSM, whose clips are a walk of 16 frames and its way back."""
    return load(WorldModelTraining, "demo-block-ssm", list(overrides), search=CONFIGS)


def horizon(frames: int, lost_to: str | None = "context_mean", reach: int = 63) -> Horizon:
    nothing = np.zeros(0)
    return Horizon("m", frames, frames, frames, reach, lost_to, 24, [], nothing, nothing, nothing)


def facts(found: Horizon | None, *overrides: str, steps: dict[str, list[float]] | None = None, **more: Any) -> Facts:
    told = {"frame_ms": None, "timed_by": "", "seams": None, **more}
    return Facts(RUN, "m", training(*overrides), found, steps=pd.DataFrame(steps or {}), **told)


def changes(found: Facts) -> dict[str, Advice]:
    return {advice.setting: advice for advice in advise(found)}


BLOCK, D_STATE = "model.layers.0.spatial_block", "model.d_state"
CHEAP = "model.d_state=4"
"""With so small a state, memory pays off at once, and nothing is said of its price."""


def test_nothing_measured_speaks_for_nothing() -> None:
    found = facts(None)
    assert changes(found) == {}
    told = list(found.missing("s"))
    for line, what in zip(told, ("its memory horizon", "time per frame", "the spread and rank"), strict=True):
        assert line.startswith(f"not known: {what}")


def test_who_remembers_as_far_as_it_was_trained_needs_longer_clips() -> None:
    told = changes(facts(horizon(28), CHEAP))["data.curriculum"]
    assert told.change == "a last stage of 64 frames" and "28 frames" in told.why and "of 32" in told.why
    assert "data.curriculum" not in changes(facts(horizon(12), CHEAP))
    assert "data.curriculum" in changes(facts(horizon(31, None, 31), CHEAP)), "all that was asked"
    far = "data.curriculum=[{frames: 128}]"
    assert set(changes(facts(horizon(31, None, 31), CHEAP, far))) == {"the protocol's context"}


def test_large_blocks_and_windows_alone_are_told_to_carry_more() -> None:
    told = changes(facts(horizon(6), CHEAP, "model.layers=[{spatial_block: frame}]"))[BLOCK]
    assert "16 tokens later" in told.why and "[1, 1]" in told.change
    state, grown = (float(word) for word in told.price.split() if word[0].isdigit())
    assert grown > 4 * state, "16 tubes of a frame in the first two of three layers"
    assert BLOCK not in changes(facts(horizon(6), CHEAP)), "its blocks are small already"
    assert BLOCK not in changes(facts(horizon(63, None), CHEAP, "model.layers=[{spatial_block: frame}]"))
    alone = changes(facts(horizon(6), "model.layers=[{mixer: none}]"))["model.layers"]
    assert "10 frames layer upon layer" in alone.why and "block_ssm.yaml" in alone.change
    full = facts(horizon(6), "model.layers=[{mixer: attention, local: none}]")
    assert "model.layers" not in changes(full) and full.full is None


def test_states_that_add_nothing_to_windows_are_told_so() -> None:
    assert "states carry nothing" in changes(facts(horizon(4, "m/wiped"), CHEAP))["model.window"].why
    assert "model.window" not in changes(facts(horizon(4, "context_mean"), CHEAP))
    assert "model.window" not in changes(facts(horizon(20, "m/wiped"), CHEAP)), "beyond the windows they do"


@pytest.mark.parametrize(("rank", "change"), [(3.0, "32"), (20.0, None), (40.0, "128")])
def test_the_rank_of_a_state_says_how_wide_it_should_be(rank: float, change: str | None) -> None:
    steps = {"state_rank.layers.0.ssm": [9.0, 1.0], "state_rank.layers.1.ssm": [9.0, rank]}
    told = changes(facts(horizon(12), steps=steps)).get(D_STATE)
    assert (told.change if told else None) == change
    if told:
        assert f"rank {rank}" in told.why and "layers.1.ssm" in told.why and "of at most 48" in told.why


def test_a_state_that_drifts_is_to_be_regularised() -> None:
    grows = {"state_std.layers.0.ssm": [0.1, 0.1, 0.1, 0.3], "state_std.layers.1.ssm": [1.0] * 4}
    told = changes(facts(horizon(12), CHEAP, steps=grows))["memory.regularise"]
    assert told.change == "0.01" and "3.0 times" in told.why and "layers.0.ssm" in told.why
    more = changes(facts(horizon(12), CHEAP, "memory.regularise=0.1", steps=grows))["memory.regularise"]
    assert more.change == "0.3"
    still = {name: [1.0] * 4 for name in grows}
    assert "memory.regularise" not in changes(facts(horizon(12), CHEAP, "memory.regularise=0.1", steps=still))
    assert changes(facts(horizon(0), CHEAP, "memory.regularise=0.1", steps=still))["memory.regularise"].change == "0"


def test_training_that_still_learns_or_never_asks_is_told() -> None:
    falls, level = {"val_loss": list(np.linspace(1, 0.5, 20))}, {"val_loss": [1.0, *[0.5] * 19]}
    assert changes(facts(horizon(12), CHEAP, steps=falls))["steps"].change == "2000"
    assert "steps" not in changes(facts(horizon(12), CHEAP, steps=level))
    told = changes(facts(horizon(12), CHEAP, "diffusion.clean_prefix=0.1"))["diffusion.clean_prefix"]
    assert "only 10% of its clips" in told.why


def test_seams_and_prices_are_told_where_they_were_measured() -> None:
    small = "model.layers=[{spatial_block: [1, 1]}]"
    assert "2.5 dB" in changes(facts(horizon(12), CHEAP, small, seams=2.5))["model.layers.-1.spatial_block"].why
    assert not [s for s in changes(facts(horizon(12), CHEAP, small, seams=0.2)) if s.endswith("spatial_block")]
    dear = changes(facts(horizon(12)))["model.d_state or spatial_block"]
    assert "pays off from frame 5" in dear.why
    assert "model.d_state or spatial_block" not in changes(facts(horizon(60)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run that is ahead of its rivals up to distance 5, and what its frames cost."""
    store = open_store(tmp_path)
    row = {"run": RUN, "kind": "train", "name": "m", "status": "done", "config": dump(training())}
    tables.append(store, "runs", [row, row | {"run": "auto", "kind": "autoencoder"}], part="runs")
    label = {"checkpoint": 9, "protocol": "p", "seed": 0, "dataset": "d"}
    rows = [
        {**label, "task": "retrieval", "run": run, "system": system, "metric": "psnr", "episode": episode}
        | {"frame": distance, "distance": distance, "better": "higher"}
        | {"value": 20.0 + episode + (2 if system == "m" and distance < 7 else 0)}
        for run, system in ((RUN, "m"), (RUN, "m/wiped"), ("none", "copy_last"), ("none", "context_mean"))
        for episode in range(4)
        for distance in (1, 3, 5, 7, 9)
    ]
    cost = [
        {**label, "task": "cost", "run": RUN, "system": "m", "metric": "step_ms", "protocol": "q", "episode": 0}
        | {"frame": length, "distance": length, "better": "lower", "value": 3.0 * length}
        for length in (4, 8)
    ]
    tables.append(store, "scores", rows + cost, part="cells")
    tables.append(store, "steps", [{"run": RUN, "step": s, "state_std.layers.0.ssm": 1.0} for s in range(6)], "steps")
    return store


def test_horizon_and_cost_stand_side_by_side(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = gather(store, [RUN])
    (line,) = side_by_side([found]).to_dict("records")
    assert (line["horizon"], line["of"], line["ms_per_frame"]) == ("6 [6, 6]", 9, 24.0)
    assert line["carried_mb"] > line["full_attention_mb"] > 0
    assert line["timed_by"] == "task cost, 8 frames shown" and not list(found.missing("s"))
    with pytest.raises(SystemExit) as left:
        cli(["diagnose", RUN, "--store", store.uri])
    told = capsys.readouterr().out
    assert not left.value.code and "m remembers for 6 frames, then" in told and "change model.d_state or" in told


def test_what_has_no_memory_is_refused_and_what_is_unknown_is_named(store: Store) -> None:
    with pytest.raises(UserError, match="run auto: it is a training of an autoencoder"):
        gather(store, ["auto"])
    with pytest.raises(UserError, match="unknown run 'lates'.*did you mean latest"):
        gather(store, ["lates"])
