"""Tables of the paper: all can run, their pages say what scores say, and what is done is not done again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longtake.config import shipped
from longtake.errors import UserError
from longtake.evals.bootstrap import interval, resampled_means, seed_and_episode_means
from longtake.jobs.reproduce import command, page
from longtake.jobs.reproduce.config import CONFIGS, Table, read
from longtake.storage.store import open_store
from longtake.tables.schema import NO_RUN

TABLES = [name.rpartition("-")[::2] for name in shipped(CONFIGS)]
PUBLISHED = {
    "retrieval": {"block_ssm": 30.8, "mamba": 20.4, "mamba_local": 19.3, "causal_window": 26.4, "causal_full": 32.6},
    "reasoning": {"block_ssm": 28.2, "mamba": 26.4, "mamba_local": 27.5, "causal_window": 27.1, "causal_full": 28.8},
    "ablation": {"block_ssm": 28.2, "no_block_scan": 27.5, "blocks_1": 23.1, "no_clean_prefix": 25.3},
}
"""PSNR of the paper's tables 2, 3 and 5."""


def test_three_tables_at_three_scales() -> None:
    assert sorted(TABLES) == sorted((name, scale) for name in PUBLISHED for scale in ("micro", "small", "paper"))


@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_every_row_is_a_training_beside_what_was_published(name: str, scale: str) -> None:
    table = read(name, scale, [])
    assert len(table.config.seeds) == 3 and list(table.trainings)[0] == "block_ssm"
    told = {row.name: row.published["psnr"] for row in table.config.rows if row.published}
    assert told == (PUBLISHED["retrieval"] if (name, scale) == ("reasoning", "micro") else PUBLISHED[name])
    for row, trainings in table.trainings.items():
        assert [training.seed for training in trainings] == table.config.seeds
        assert {training.name for training in trainings} == {row}
        longest = trainings[0].data.curriculum[-1].frames
        assert longest >= {"micro": 512, "small": 256, "paper": 800}[scale]


def test_the_papers_recipe_is_that_of_its_relatives() -> None:
    training = read("retrieval", "paper", []).trainings["block_ssm"][0]
    engine, diffusion, model = training.engine, training.diffusion, training.model
    assert (engine.lr, engine.beta1, engine.beta2, engine.weight_decay, engine.clip) == (2e-4, 0.9, 0.99, 1e-3, 1.0)
    assert (engine.warmup, diffusion.weighting, diffusion.sigmoid_bias, model.prediction) == (2000, "sigmoid", -1, "v")
    assert (model.depth, model.dim, model.d_state, model.chunk, model.clip) == (8, 1024, 256, 5, None)
    assert [(stage.until, stage.frames) for stage in training.data.curriculum] == [(100_000, 400), (None, 800)]


def test_the_paper_scale_asks_the_papers_lengths_in_whole_chunks() -> None:
    """576 and 224 frames of the paper's reasoning are 575 and 225 here: frames are made five at a time."""
    lengths = {
        name: {p.task: (p.context, p.horizon) for p in read(name, "paper", []).evaluation.protocols}
        for name in ("retrieval", "reasoning")
    }
    assert lengths["retrieval"] == {"retrieval": (400, 400), "revisit": (400, 399)}
    assert lengths["reasoning"] == {"reasoning": (575, 225), "rollout": (240, 560)}


def test_what_is_wrong_is_told_at_once_and_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="retrievel.*did you mean 'retrieval'|retrievel.*retrieval"):
        read("retrievel", "micro", [])
    with pytest.raises(UserError, match="scale of retrieval.*mikro"):
        read("retrieval", "mikro", [])
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: {CONFIGS}/retrieval-micro.yaml\n"
        "rows:\n  - {name: a, family: mambo}\n  - {name: b, change: {model.dim: 7, model.dept: 3}}\n"
    )
    with pytest.raises(UserError) as refused:
        read(str(file), "micro", [])
    told = "\n".join(refused.value.lines)
    assert "rows.a: unknown family 'mambo'" in told or "rows.a: no config 'mambo'" in told or "rows.a: " in told
    assert "rows.b: model.dept" in told
    with pytest.raises(UserError, match="evaluate: .*rollout"):
        read("retrieval", "micro", ["task=rollout"])
    with pytest.raises(UserError, match="rows: a twice"):
        read("retrieval", "micro", ["rows=[{name: a}, {name: a}]"])


def test_the_plan_tells_rows_and_hours(capsys: pytest.CaptureFixture[str]) -> None:
    command.main("ablation", "micro", ["seeds=[0]"], "none", dry_run=True)
    text = capsys.readouterr().out
    assert "no_clean_prefix" in text and "4 rows x 1 seeds" in text and "asked            revisit 256 -> 64" in text


# --- intervals ------------------------------------------------------------------------------------------------


def test_one_training_has_the_interval_of_its_episodes() -> None:
    values = np.random.default_rng(1).normal(size=20)
    assert np.allclose(seed_and_episode_means(values[None]), resampled_means(values))


def test_trainings_that_differ_widen_the_interval_by_what_they_differ() -> None:
    rng = np.random.default_rng(2)
    episodes, trainings = rng.normal(size=48), np.array([-1.0, 0.0, 1.0])
    spread = seed_and_episode_means(trainings[:, None] + episodes, 4000).std()
    expected = np.sqrt(trainings.var() / 3 + episodes.var() / 48)
    assert spread == pytest.approx(expected, rel=0.05)


def test_what_is_common_to_episodes_cancels_in_a_difference_and_more_comparisons_are_wider() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(scale=10, size=40)
    one, other = (hard + rng.normal(scale=0.1, size=(3, 40)) for _ in range(2))
    gap = seed_and_episode_means(one + 1) - seed_and_episode_means(other, seed=1)
    low, high = interval(gap)
    assert 0.9 < low < 1 < high < 1.1
    wide = interval(gap, comparisons=5)
    assert wide[0] < low and wide[1] > high


# --- the page -------------------------------------------------------------------------------------------------


def planted(table: Table) -> pd.DataFrame:
    """Scores of three trainings each of ours (30) and mamba (20), and of a floor (10)."""
    rows = []
    for system, level in (("block_ssm", 30.0), ("mamba", 20.0), ("context_mean", 10.0)):
        for seed in range(1 if system == "context_mean" else 3):
            for episode in range(8):
                run = NO_RUN if system == "context_mean" else f"{system}-{seed}"
                value = level + 0.1 * seed + episode
                rows.append({"task": "revisit", "metric": "psnr", "system": system, "run": run, "episode": episode,
                             "value": value, "frame": 0, "distance": 5})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_page_says_what_the_scores_say() -> None:
    table = read("retrieval", "micro", [])
    text = page.render(table, planted(table), ["block_ssm-0", "mamba-0"])
    lines = [line for line in text.splitlines() if line.startswith(("| block", "| mamba", "| context"))]
    assert [line.split()[1] for line in lines] == ["block_ssm", "mamba", "context_mean"], "the best first"
    assert "| 33.60 [" in lines[0] and "| 30.8 |" in lines[0]
    assert "| 23.60 [" in lines[1] and "| 20.4 | +10.00 [" in lines[1]
    assert "+20.10 [" in lines[2] and "2 comparisons." in text and "3 seeds; 8 episodes." in text
    assert "longtake reproduce retrieval --scale micro" in text
    alone = page.render(read("retrieval", "micro", ["seeds=[0]"]), planted(table), [])
    assert "ONE seed" in alone


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_table_from_nothing_and_again_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.yaml").write_text(
        f"base: {CONFIGS.parent}/train/torus-micro.yaml\nsteps: 2\nvalidation: {{clips: 2}}\n"
        "data: {dataset: texture-torus-tiny, frames_per_step: 64, curriculum: [{frames: 32}]}\n"
        "model: {dim: 16, depth: 1, heads: 2, headdim: 16, d_state: 8}\n"
    )
    (tmp_path / "asked.yaml").write_text(
        "clips_per_cell: 2\nprotocols:\n  - {task: revisit, context: 8, horizon: 4, episodes: 2}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        f"base: {CONFIGS}/retrieval-micro.yaml\ncollect: [texture-torus-tiny]\nseeds: [0, 1]\n"
        f"train: {tmp_path}/short.yaml\nevaluate: {tmp_path}/asked.yaml\n"
        "rows: [{name: block_ssm}, {name: mamba, family: mamba}]\n"
    )
    store = open_store(tmp_path / "store")
    pages = []
    for _ in range(2):
        command.main(str(tmp_path / "mine.yaml"), "micro", [], store.uri, dry_run=False)
        pages.append((tmp_path / "store/reports/reproduce-mine.md").read_text())
    assert pages[0] == pages[1] and "| mamba |" in pages[0]
    assert len(store.table("runs")) == 4, "two rows from two seeds, trained once"
    assert capsys.readouterr().out.count("has done this already: reused") == 4
