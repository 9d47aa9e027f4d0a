"""Capacity: a memory of k places has k log2 N bits, an empty one none, and places are told apart as they were shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from longtake.evals.baselines import ContextMean, CopyLast, NearestPose
from longtake.evals.clip import build_clip
from longtake.evals.controls import SwappedContext
from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.systems import ModelSystem, System
from longtake.evals.task import EvalClip
from longtake.evals.tasks.capacity import find_places, numbers
from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel
from tests.evals.planted import Places, Window

CLIPS, MOST = 60, 16
PROTOCOL = Protocol(task="capacity", context=40, horizon=MOST, episodes=CLIPS)
Make = Callable[[Sequence[EvalClip]], System]


def walks(protocol: Protocol = PROTOCOL, slow: int = 0) -> tuple[list[EvalClip], Conditions]:
    """Clips that go from place to place, two frames at each, through worlds of independent places; the first `slow` of
    them stay at four places for good."""
    draw, made, poses = np.random.default_rng(0), [], []
    for episode in range(CLIPS):
        places = draw.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        at = np.arange(40) // 2 % (4 if episode < slow else 20)
        pose = np.stack([at, 0 * at, 0 * at], 1).astype(np.float32)
        actions = np.ones((40, 2), np.float32)
        made.append(build_clip(protocol, episode, places[at], pose, actions))
        assert made[-1].pose is not None
        still = np.zeros((len(made[-1].pose), 1), np.float32)
        poses.append(np.concatenate([made[-1].pose[:, :2], still + 1, still], 1))
    told = np.stack([question.actions for question in made])
    return made, Conditions(pose=torch.from_numpy(np.stack(poses)), actions=torch.from_numpy(told))


def rows(make: Make, protocol: Protocol = PROTOCOL, slow: int = 0) -> pd.DataFrame:
    made, conditions = walks(protocol, slow)
    measure = TASKS["capacity"].measure
    assert measure is not None
    return pd.DataFrame(measure(make, protocol, made, conditions))


def means(make: Make) -> dict[tuple[str, int], float]:
    return dict(rows(make).groupby(["metric", "distance"]).value.mean())


@pytest.mark.parametrize("known", [1, 3, 8, MOST])
def test_a_perfect_memory_of_k_places_has_k_log_n_bits(known: int) -> None:
    found = means(lambda some: Places(known, nbytes=1000 * len(some)))
    for count in (2, 4, 8, 16):
        held = min(known, count)
        assert found["bits", count] == pytest.approx(held * np.log2(count), abs=0.35)
        assert found["bits_per_byte", count] == pytest.approx(found["bits", count] / 1000)
        assert abs(found["recall", count] - (held + (count - held) / count) / count) < 0.07


def test_an_empty_memory_has_none_and_so_have_the_floors() -> None:
    for make in (lambda some: Places(0), lambda some: CopyLast(), lambda some: ContextMean()):
        found = means(make)
        for count in (2, 4, 8, 16):
            assert abs(found["bits", count]) < 0.25 and abs(found["recall", count] - 1 / count) < 0.13
        assert not any(metric == "bits_per_byte" for metric, _ in found), "who does not say what it carries has none"


def test_the_oracle_is_the_ceiling_and_a_strangers_context_is_chance() -> None:
    ceiling = means(lambda some: NearestPose())
    assert all(ceiling["recall", count] == 1 for count in (2, 4, 8, 16))
    assert ceiling["bits", 16] == pytest.approx(64, abs=0.2)
    every, _ = walks()

    def strangers(some: Sequence[EvalClip]) -> System:
        others = [every[(question.episode + 1) % CLIPS].frames[: PROTOCOL.context] for question in some]
        return SwappedContext(NearestPose(), torch.from_numpy(np.stack(others)))

    assert abs(means(strangers)["bits", 16]) < 0.5


def test_a_window_forgets_the_first_places() -> None:
    """Of sixteen places, two frames each but for the last, whose second is not shown; answers push out what is old."""
    found = means(lambda some: Window(31))
    assert found["recall", 8] == 1 and found["recall", 16] < 0.8
    assert means(lambda some: Window(1000))["recall", 16] == 1


def test_a_model_is_asked_like_any_system_and_says_what_it_carries() -> None:
    """An untrained one knows nothing; what a scan carries does not grow with the places, what attention keeps does."""
    made, conditions = walks()
    protocol = PROTOCOL.model_copy(update={"horizon": 8})
    carried = {}
    for mixer in ("ssm", "attention"):
        torch.manual_seed(0)
        layer = LayerConfig(mixer=mixer, local="none")
        config = ModelConfig(height=8, width=8, dim=16, heads=2, d_state=4, headdim=8, action_dim=2, layers=[layer])
        model, sampler = WorldModel(config), SamplerConfig(steps=1)

        def build(some: Sequence[EvalClip], model: WorldModel = model, sampler: SamplerConfig = sampler) -> System:
            return ModelSystem(model, PIXELS, sampler, [question.episode for question in some])

        measure = TASKS["capacity"].measure
        assert measure is not None
        told = pd.DataFrame(measure(build, protocol, made[:10], conditions.clips(0, 10)))
        again = pd.DataFrame(measure(build, protocol, made[:10], conditions.clips(0, 10)))
        pd.testing.assert_frame_equal(told, again)
        wide = told.pivot_table(index="distance", columns="metric", values="value")
        assert (wide.recall < 0.8).all() and (wide.bits.abs() < 2).all()
        np.testing.assert_allclose(wide.bits_per_byte, wide.bits / wide.memory_bytes)
        carried[mixer] = wide.memory_bytes.to_numpy()
    assert len(set(carried["ssm"])) == 1 and carried["ssm"][0] > 100
    grown = carried["attention"] / carried["attention"][0]
    assert grown == pytest.approx([1, 7 / 3, 5], rel=0.01), "3, 7 and 15 frames are shown"


def test_places_are_a_cell_apart_and_go_round() -> None:
    pose = np.array([[0, 0, 0], [0.6, 0, 0], [1.0, 0, 0], [3.5, 0, 0], [0.1, 0, np.pi], [2.2, 2.2, 0]], np.float32)
    assert find_places(pose, PROTOCOL).tolist() == [0, 2, 3, 4, 5]
    around = PROTOCOL.model_copy(update={"wraps": 4.0})
    assert find_places(pose, around).tolist() == [0, 2, 4, 5], "3.5 of 4 is half a cell from 0"
    assert numbers(16) == [2, 4, 8, 16] and numbers(12) == [2, 4, 8, 12] and numbers(2) == [2]


def test_what_is_shown_and_asked_is_as_said() -> None:
    seen: list[tuple[int, int]] = []

    class Watched(Places):
        def observe(self, frames: torch.Tensor, conditions: Conditions) -> None:
            seen.append((len(frames), frames.shape[1]))
            super().observe(frames, conditions)

        def step(self, conditions: Conditions) -> torch.Tensor:
            assert conditions.actions is not None and not conditions.actions.any(), "no action leads to what is asked"
            return super().step(conditions)

    rows(lambda some: Watched(0))
    assert {frames for _, frames in seen} == {3, 7, 15, 31}, "the frame in which the last place is first seen"
    assert {clips for clips, _ in seen} == {8, 4}

    class Chunked(Watched):
        frames_per_step = 4

        def step(self, conditions: Conditions) -> torch.Tensor:
            return super().step(conditions).expand(-1, conditions.length, -1, -1, -1)

    seen.clear()
    rows(lambda some: Chunked(0))
    assert {frames for _, frames in seen} == {4, 8, 16, 32}


def test_clips_that_show_too_few_places_are_left_out() -> None:
    found = rows(lambda some: Places(MOST), slow=20)
    clips = found[found.metric == "bits"].groupby("distance").episode.nunique()
    assert clips.to_dict() == {2: 60, 4: 60, 8: 40, 16: 40}
    with pytest.raises(ValueError, match="fewer than two clips show two places within 1 frames"):
        alone = PROTOCOL.model_copy(update={"context": 1})
        measure, (made, conditions) = TASKS["capacity"].measure, walks()
        assert measure is not None
        measure(lambda some: Places(1), alone, made, conditions)


def test_protocols_that_make_no_sense_are_refused() -> None:
    for wrong, why in (({"horizon": 41}, "41 places; allowed are 2 to the 40"), ({"horizon": 1}, "1 places")):
        with pytest.raises(ValueError, match=why):
            TASKS["capacity"].frame_order(PROTOCOL.model_copy(update=wrong))
    with pytest.raises(ValueError, match="two at least"):
        TASKS["capacity"].frame_order(PROTOCOL.model_copy(update={"episodes": 1}))
    with pytest.raises(
        ValueError, match="metrics: capacity has no psnr; it has recall, bits, bits_per_byte, memory_bytes"
    ):
        Protocol(task="capacity", metrics=["psnr"])
