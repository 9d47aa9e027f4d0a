"""What is played, without a page: dream, wiped dream and truth under the same keys, and all ways through time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from longtake.config import load
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.collect import command as collect
from longtake.jobs.evaluate.check import protocol_problems
from longtake.jobs.play.game import Game
from longtake.jobs.play.recordings import save
from longtake.models.config import SamplerConfig
from longtake.storage.store import Store, open_store
from longtake.worlds.world import World
from tests.worlds.played import planted

RUN = "20261121-041233-k3f9"
KEYS = [{"ArrowRight"}, {"ArrowUp"}, {"ArrowRight", "ArrowUp"}, set[str](), {"ArrowLeft"}, {"ArrowUp"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A torus, whose truth costs nothing, and a run on it."""
    store = open_store(tmp_path_factory.mktemp("store"))
    settings = load(collect.CollectConfig, "texture-torus-micro", ["episodes=8", "test=0.3"], search=collect.CONFIGS)
    writer = collect._writer(settings, store)
    writer.claim()
    for shard in range(settings.shards):
        collect.make_shard(settings, store.uri, shard)
    dataset = writer.finalize(settings.shards)
    planted(store, RUN, dataset=dataset.name)
    return store


@pytest.fixture
def game(store: Store) -> Iterator[Game]:
    world = World.load(RUN, store=store.uri, sampler=SamplerConfig(steps=1), beyond_training=True)
    game = Game(world, store.dataset(world.about.dataset), 6, 4)
    game.begin(0)
    yield game
    game.close()


def play(game: Game) -> list[bytes]:
    made = []
    for keys in KEYS:
        game.step(keys)
        made.append(game.pixels())
    return made


def test_truth_dream_and_wiped_go_the_same_way(game: Game) -> None:
    play(game)
    told = game.status()
    assert [pane["name"] for pane in told["panes"]] == ["truth", "dream", "wiped"]
    assert told["panes"][0]["psnr"] is None and all(5 < pane["psnr"] < 60 for pane in told["panes"][1:])
    assert game.truth is not None and np.allclose(told["pose"], game.truth.pose)
    assert game.dream.nbytes > 0 and len(game.trail) == 6 + len(KEYS) and told["frame"] == len(KEYS)
    assert told["carried"] == game.dream.nbytes and told["attention"] > 0 and told["ms"] > 0


def test_the_truth_is_the_recording_under_the_recorded_actions(game: Game) -> None:
    episode = game._dataset.read(game.episodes[0], 4, 16)
    for action in game._dataset.action_vectors(episode.actions)[6:]:
        game.act(action)
    assert game.truth is not None and np.array_equal(game.truth.frame, episode.frames[-1])


def test_going_back_and_replaying_give_the_same_pictures(game: Game) -> None:
    made = play(game)
    game.rewind(2)
    assert game.frame == 2 and len(game.trail) == 8
    for keys, expected in zip(KEYS[2:], made[2:], strict=True):
        game.step(keys)
        assert game.pixels() == expected
    actions = game.replay()
    assert game.frame == 0
    again = []
    for action in actions:
        game.act(action)
        again.append(game.pixels())
    assert again == made


def test_one_of_four_futures_is_kept(game: Game) -> None:
    play(game)
    game.fork(4)
    game.choose(2)
    for _ in range(3):
        game.step({"ArrowUp"})
    shown = game._last[2].frame
    assert game.status()["futures"] == 4 and not np.array_equal(shown, game._last[0].frame)
    with pytest.raises(UserError, match="not while futures are side by side"):
        game.rewind(0)
    game.keep()
    assert game.frame == len(KEYS) + 3 and not game.futures
    dream = next(picture for picture in game._last if picture.name == "dream")
    assert (np.abs(dream.frame.astype(int) - shown) <= 1).all()
    assert game.truth is not None and np.allclose(game.truth.pose, game.dream.pose)


def test_another_context_is_another_world(game: Game) -> None:
    before = game._last[0].frame
    game.begin(game.number + 1)
    assert game.frame == 0 and not np.array_equal(game._last[0].frame, before)


def test_what_is_played_is_a_dataset_that_no_evaluation_takes_for_truth(game: Game, store: Store) -> None:
    with pytest.raises(UserError, match="save: 0 frames are recorded; 6 are needed"):
        save(game.finished, game.dream.source, store)
    game.record()
    made = play(game)
    game.record()
    dataset = save(game.finished, game.dream.source, store)
    assert dataset.manifest.frames == len(made) and dataset.manifest.splits == {"train": 1, "val": 1, "test": 1}
    assert dataset.manifest.recipe["dreamt"]["run"] == RUN
    found = protocol_problems(Protocol(task="rollout", context=1, horizon=1, episodes=1), dataset)
    assert f"was dreamt by run {RUN}: it is no truth" in found[0]


def test_contexts_that_no_episode_has_are_told(store: Store) -> None:
    world = World.load(RUN, store=store.uri)
    with pytest.raises(UserError, match="context: 4 . 9999 frames, but no test episode"):
        Game(world, store.dataset(world.about.dataset), 9999, 4)


@pytest.mark.slow
def test_a_doom_maze_is_simulated_on(tmp_path: Path) -> None:
    """From any frame of a recorded walk, as it was recorded."""
    pytest.importorskip("vizdoom")
    from longtake.sources.simulators import simulated

    store = open_store(tmp_path)
    settings = load(
        collect.CollectConfig, "doom-maze-tiny", ["episodes=4", "walks=1", "source.steps=24"], search=collect.CONFIGS
    )
    writer = collect._writer(settings, store)
    writer.claim()
    for shard in range(settings.shards):
        collect.make_shard(settings, store.uri, shard)
    dataset = writer.finalize(settings.shards)
    episode = dataset.read(1)
    with simulated(dataset, 1, 10) as world:
        assert np.array_equal(world.frame, episode.frames[9])
        for action in episode.actions[10:]:
            world.step(action)
        assert np.array_equal(world.frame, episode.frames[-1])
        assert episode.pose is not None and np.allclose(world.pose, episode.pose[-1], atol=1e-4)
