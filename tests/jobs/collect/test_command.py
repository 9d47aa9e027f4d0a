"""`longtake collect` and `longtake inspect`: deterministic, resumable, and clear about what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from longtake.config import load
from longtake.datasets import worlds
from longtake.datasets.shard import Codec
from longtake.errors import UserError
from longtake.jobs.collect import command as collect
from longtake.jobs.collect.command import TYPICAL_RATIO, CollectConfig, make_shard, record
from longtake.jobs.datasets import inspect
from longtake.sources.environments.doom_maze import DoomMazeConfig
from longtake.storage.store import open_store

pytest.importorskip("vizdoom")

SMALL = CollectConfig(name="small", episodes=5, source=DoomMazeConfig(cells=2, steps=12, resolution=(16, 16)))


@pytest.mark.parametrize("name", ["doom-maze", "doom-maze-tiny", "atari-montezuma", "doom-memory", "texture-torus"])
def test_shipped_configs_load_and_print_their_plan(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(CollectConfig, name, [], search=collect.CONFIGS)
    collect.main(name, ["episodes=30", "val=0.1", "test=0.1"], str(tmp_path), dry_run=True)
    told = capsys.readouterr().out
    assert "24 train, 3 val, 3 test" in told
    assert not (tmp_path / "datasets").exists()


def test_every_shipped_config_loads_and_is_of_its_name() -> None:
    for path in collect.CONFIGS.glob("*.yaml"):
        assert load(CollectConfig, path.stem, [], search=collect.CONFIGS).name == path.stem


def test_the_config_of_memory_maze_loads_and_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none")
    config = load(CollectConfig, "memory-maze", ["source.size=15x15"], search=collect.CONFIGS)
    with pytest.raises(UserError, match="MUJOCO_GL=none"):
        collect.check(config, open_store(tmp_path))


WALKS = {
    "name": "pairs",
    "episodes": 24,
    "walks": 2,
    "test": 0.4,
    "source": {"source": "texture-torus", "side": 2, "pixels": 8, "steps": 12},
}


def test_walks_in_one_world_are_never_split(tmp_path: Path) -> None:
    config, store = CollectConfig.model_validate(WALKS), open_store(tmp_path)
    assert config.splits == {"train": 12, "val": 2, "test": 10}
    collect.main("texture-torus-walks", [], str(tmp_path), dry_run=True)
    for shard in range(config.shards):
        make_shard(config, store.uri, shard)
    data = collect._writer(config, store).finalize(config.shards)
    assert data.manifest.splits == config.splits and data.manifest.split_rule.startswith("worlds in the order")
    split = dict(zip(data.index.episode, data.index.split, strict=True))
    metas = [data.read(episode).meta for episode in range(24)]
    assert [(meta["world"], meta["walk"]) for meta in metas] == [(n // 2, n % 2) for n in range(24)]
    assert all(split[episode] == split[episode + 1] for episode in range(0, 24, 2))
    assert (data.read(0).frames != data.read(1).frames).any()
    pairs = worlds.walks(data, "test", 2)
    assert len(pairs) == 5 and all(
        b == a + 1 and episode == b for episode, (a, b) in zip(pairs.episode, pairs.walks, strict=True)
    )
    assert worlds.walks(data, "test", 3).empty and worlds.wraps(data) == 2


def test_walks_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="episodes: 25 is no multiple of walks=2; the nearest is 24"):
        CollectConfig.model_validate(WALKS | {"episodes": 25})
    with pytest.raises(ValidationError, match="source doom-memory makes a world per episode"):
        CollectConfig.model_validate(WALKS | {"source": {"source": "doom-memory"}})
    with pytest.raises(UserError, match="worlds=2 is too few"):
        collect.check(CollectConfig.model_validate(WALKS | {"episodes": 4}), open_store(tmp_path))


def test_a_dataset_of_one_walk_a_world_is_what_it_was() -> None:
    """Episodes, recipe and splits of before worlds had several walks: what was collected is reused."""
    assert "walks" not in collect._recipe(SMALL) and "walks" in collect._recipe(CollectConfig.model_validate(WALKS))
    assert set(record(SMALL, 3).meta) == {"seed", "squares"}
    metas, digests = ['{"world": "kitchen"}'] * 3, ["c", "a", "b"]
    assert worlds.in_one_split(digests, metas) == [[1], [2], [0]], "a world of that name may have one walk only"


def test_every_problem_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)

    def full(bytes_: int) -> None:
        raise UserError(f"no space for {bytes_} bytes")

    monkeypatch.setattr(store, "require_space", full)
    with pytest.raises(UserError) as caught:
        collect.check(SMALL.model_copy(update={"episodes": 2}), store)
    assert len(caught.value.lines) == 2
    assert "at least 3" in str(caught.value) and "no space" in str(caught.value)


def test_another_config_under_the_same_name_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    collect._writer(SMALL, store).claim()
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        collect.run(SMALL.model_copy(update={"seed": 1}), store)


@pytest.mark.timeout(60)
def test_a_shard_does_not_depend_on_who_makes_it(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for shard in (2, 0) if folder == "a" else (0, 2):
            make_shard(SMALL, str(tmp_path / folder), shard)
    for shard in ("00000", "00002"):
        one, other = (tmp_path / folder / f"datasets/small/shards/{shard}.shard" for folder in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_collect_resumes_and_is_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path)
    make_shard(SMALL, store.uri, 1)
    data = collect.run(SMALL, store, cpus=2)
    assert "1 of 5 shards" in capsys.readouterr().out
    assert data.manifest.episodes == 5 and min(data.manifest.splits.values()) >= 1
    seeds = [data.read(number).meta["seed"] for number in range(5)]
    assert seeds == [0, 1, 2, 3, 4]
    again = collect.run(SMALL, store, cpus=2)
    assert "reused" in capsys.readouterr().out and again.fingerprint == data.fingerprint

    inspect.main("small", store.uri, str(tmp_path / "sheet.png"))
    assert data.fingerprint in capsys.readouterr().out
    import matplotlib.image

    sheet = matplotlib.image.imread(tmp_path / "sheet.png")
    assert sheet.shape[:2] == (5 * inspect.TILE_PX, (inspect.COLUMNS + 1) * inspect.TILE_PX)
    assert np.ptp(sheet) > 0.5


@pytest.mark.parametrize(("edge", "codec", "episodes"), [(64, "zstd", 4000), (256, "zstd", 400), (256, "video", 2000)])
def test_shards_of_a_large_dataset_are_neither_small_nor_huge(edge: int, codec: Codec, episodes: int) -> None:
    source = DoomMazeConfig(steps=512, resolution=(edge, edge))
    config = CollectConfig(name="x", episodes=episodes, codec=codec, source=source)
    typical = 512 * edge * edge * 3 * TYPICAL_RATIO[codec]
    assert 64e6 < config.shard_episodes * typical < 256e6
    assert config.shards * config.shard_episodes >= episodes > (config.shards - 1) * config.shard_episodes


def test_a_small_dataset_is_still_made_in_parallel() -> None:
    assert CollectConfig(name="x", episodes=320, source=DoomMazeConfig(resolution=(32, 32))).shards == 8
    assert CollectConfig(name="x", episodes=5).shards == 5
