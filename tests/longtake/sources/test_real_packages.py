"""Sources as their own packages make them: what Minari wrote is what Minari reads, what MiniGrid showed is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longtake
from tests.longtake.sources.formats.test_formats import episodes, good

gymnasium = pytest.importorskip("gymnasium")
EMPTY = "MiniGrid-Empty-5x5-v0"


class Pictures(gymnasium.ObservationWrapper[Any, Any, Any]):  # type: ignore[misc, name-defined]
    """What the environment renders, shrunk, as the observation."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (20, 20, 3), np.uint8)

    def observation(self, observation: Any) -> Any:
        return self.env.render()[::8, ::8].copy()


def grid() -> Any:
    pytest.importorskip("minigrid")
    return Pictures(gymnasium.make(EMPTY, render_mode="rgb_array"))


def test_minigrid_is_recorded_as_it_was_seen(tmp_path: Path) -> None:
    moves = np.random.default_rng(0).integers(0, 3, (3, 7))
    left = iter(moves.ravel())
    data = longtake.record(
        grid(),
        lambda seen: next(left),
        frame=lambda env, seen: seen,
        store=str(tmp_path),
        name="grid",
        episodes=3,
        fps=5,
        steps=8,
    )
    env = grid()
    for number, own in enumerate(moves):
        seen = [env.reset(seed=number)[0], *(env.step(move)[0] for move in own)]
        episode = data.read(number)
        np.testing.assert_array_equal(episode.frames, seen)
        assert episode.actions.tolist() == [-1, *own]
    assert data.manifest.action_classes == 7


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_reads_what_we_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari, env = pytest.importorskip("minari"), grid()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = []
    for number in range(3):
        moves = np.random.default_rng(number).integers(0, 3, 5 + number)
        seen = [env.reset(seed=number)[0], *(env.step(move)[0] for move in moves)]
        over = [False] * len(moves)
        buffer = minari.data_collector.EpisodeBuffer(
            id=number,
            observations=seen,
            actions=list(moves),
            rewards=[0.0] * len(moves),
            terminations=over,
            truncations=over,
        )
        buffers.append(buffer)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    written = minari.create_dataset_from_buffers("toy/random-v0", buffers, description="of a test", **spaces)
    found, own = episodes("hdf5", tmp_path), list(written.iterate_episodes())
    assert len(found) == len(own) == 3
    for one in own:
        (key,) = (key for key in found if key.endswith(f"episode_{one.id}"))
        episode = good(found[key])
        assert np.abs(episode.frames.astype(int) - one.observations).mean() < 2, "JPEG, of two decoders"
        assert episode.actions.tolist() == [-1, *one.actions.tolist()]
