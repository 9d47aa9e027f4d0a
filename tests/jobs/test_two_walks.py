"""Two walks end to end: recorded by collect, asked by evaluate, and a memory is told from none by its strata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longtake.config import load
from longtake.errors import UserError
from longtake.jobs.collect import command as collect
from longtake.jobs.collect.command import CollectConfig, make_shard
from longtake.jobs.evaluate import config as evaluate_config
from longtake.jobs.evaluate.cell import conditions_of, read_clip, score_cell
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.evaluate.config import EvaluateConfig
from longtake.jobs.evaluate.grid import plan_cells
from longtake.jobs.results.summary import summary
from longtake.sources.environments import texture_torus
from longtake.storage.store import Store, open_store
from longtake.tables.scores import paired_difference

MODEL = """
import torch

class Memory:
    frames_per_step = 1

    def __init__(self, seeds):
        pass

    def observe(self, frames, conditions):
        self.frames, self.pose = frames, conditions.pose

    def forget(self):
        self.frames = torch.full_like(self.frames, 128)

    def step(self, conditions):
        gap = (self.pose - conditions.pose)[..., :2].norm(dim=-1)
        found = self.frames[torch.arange(len(gap)), gap.argmin(1)]
        known = (gap.amin(1) < 0.3)[:, None, None, None]
        return torch.where(known, found, torch.full_like(found, 128))[:, None]
"""
TORUS = {
    "name": "pairs",
    "episodes": 48,
    "walks": 2,
    "test": 0.5,
    "source": {"source": "texture-torus", "side": 4, "pixels": 8, "steps": 100, "speed": 2.0},
}
ASK = """
dataset: pairs
systems: {memory: memory.py:Memory}
protocols:
  - {task: two_walks, context: 80, horizon: 20, start: 10, seen_within: 0.3, episodes: 12, metrics: [psnr]}
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two walks in each of 24 worlds, and a model that is all memory, in the folder where we are."""
    monkeypatch.chdir(tmp_path)
    Path("memory.py").write_text(MODEL)
    store, config = open_store(tmp_path / "store"), CollectConfig.model_validate(TORUS)
    for shard in range(config.shards):
        make_shard(config, store.uri, shard)
    collect._writer(config, store).finalize(config.shards)
    return store


def cells(store: Store, text: str = ASK) -> list[ScoreCell]:
    Path("mine.yaml").write_text(text)
    config = load(EvaluateConfig, Path("mine.yaml"), [], search=Path.cwd())
    return [cell.payload for cell in plan_cells(config, store, [])]


def test_the_clip_is_one_walk_and_then_the_other(store: Store) -> None:
    cell = cells(store)[0]
    data, config = store.dataset("pairs"), CollectConfig.model_validate(TORUS)
    assert len(cell.episodes) == 8 and cell.protocol.wraps == 4
    for episode in cell.episodes:
        question, second, first = (read_clip(cell, episode), data.read(episode), data.read(episode - 1))
        assert first.meta["world"] == second.meta["world"] and (first.meta["walk"], second.meta["walk"]) == (0, 1)
        np.testing.assert_array_equal(question.frames[:80], first.frames[10:90])
        np.testing.assert_array_equal(question.frames[80:], second.frames[10:30])
        assert question.pose is not None and not question.actions[80].any() and question.actions[81:].any()
        world = texture_torus.make_world(config.source, first.meta["seed"])  # type: ignore[arg-type]
        truth = texture_torus.render(question.pose, np.zeros(100, np.int64), world)
        np.testing.assert_array_equal(truth, question.frames, "the truth is what the simulator shows there")
        assert question.stratum is not None and set(question.stratum) <= {"seen", "unseen"}
    assert conditions_of(cell, [question]).length == 100


def test_a_stride_leaves_out_the_same_of_both(store: Store) -> None:
    cell = cells(
        store, ASK.replace("context: 80, horizon: 20, start: 10", "context: 40, horizon: 20, start: 8, stride: 2")
    )[0]
    episode = cell.episodes[0]
    question, second, first = (
        read_clip(cell, episode),
        store.dataset("pairs").read(episode),
        store.dataset("pairs").read(episode - 1),
    )
    np.testing.assert_array_equal(question.frames[:40], first.frames[8:88:2])
    np.testing.assert_array_equal(question.frames[40:], second.frames[8:48:2])
    assert not question.actions[40].any()


def test_seen_places_stand_above_unseen_ones_and_a_strangers_context(store: Store) -> None:
    """The bar, held by a memory that was planted: 2 dB, intervals apart; and results print it by stratum."""
    rows = pd.DataFrame([row for cell in cells(store) for row in score_cell(cell)])
    lines = summary(rows[rows.system.str.startswith("memory")], ["system"]).set_index(["system", "stratum"])
    assert set(lines.index) == {(f"memory{c}", s) for c in ("", "/wiped", "/stranger") for s in ("seen", "unseen")}
    seen = lines.loc["memory", "seen"]
    for other in (("memory", "unseen"), ("memory/stranger", "seen"), ("memory/wiped", "seen")):
        assert seen["mean"] - lines.loc[other, "mean"] > 2 and seen.low > lines.loc[other, "high"]
    kept = rows[rows.stratum == "seen"]
    gap = paired_difference(kept, "memory", "memory/stranger")
    assert gap.low > 2 and gap.episodes == 12


def test_a_dataset_of_single_walks_is_refused(store: Store) -> None:
    alone = CollectConfig.model_validate(TORUS | {"name": "alone", "walks": 1, "episodes": 24})
    for shard in range(alone.shards):
        make_shard(alone, store.uri, shard)
    collect._writer(alone, store).finalize(alone.shards)
    with pytest.raises(UserError) as caught:
        cells(store, ASK.replace("dataset: pairs", "dataset: alone"))
    told = "two_walks.episodes: 12 asked for, but split test of alone has 0 worlds with 2 walks"
    assert list(caught.value.lines) == [f"{told} (collect them with --set walks=2)"]
    with pytest.raises(UserError, match="needs 101 frames of an episode"):
        cells(store, ASK.replace("start: 10", "start: 20"))


@pytest.mark.parametrize("name", ["two-walks", "torus"])
def test_shipped_evaluations_load(name: str) -> None:
    asked = load(EvaluateConfig, name, [], search=evaluate_config.CONFIGS)
    assert {protocol.task for protocol in asked.protocols} <= {
        "two_walks",
        "capacity",
        "reasoning",
        "retrieval",
        "cuts",
    }
