"""Permanence, cuts and questions on real controlled episodes: what is asked is what their labels say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from longtake.evals.baselines import Chance, CopyLast, NearestPose
from longtake.evals.clip import build_clip
from longtake.evals.controls import SwappedContext
from longtake.evals.metrics.psnr import IDENTICAL_PSNR
from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.scoring import score
from longtake.evals.systems import System
from longtake.evals.task import EvalClip
from longtake.models.conditions import Conditions
from longtake.motion import relative_pose
from tests.evals.planted import Window

if TYPE_CHECKING:
    from longtake.datasets.episode import Episode

pytest.importorskip("vizdoom")
pytestmark = pytest.mark.timeout(120)

LOOK, AWAY, CLIPS = 2, 8, 10


@pytest.fixture(scope="module")
def recorded() -> list[Episode]:
    from longtake.sources.environments.doom_memory import DoomMemoryConfig, generate

    config = DoomMemoryConfig(objects=3, look=LOOK, away=AWAY, resolution=(48, 48))
    return [generate(config, seed) for seed in range(CLIPS)]


def asked(protocol: Protocol, recorded: Sequence[Episode]) -> tuple[list[EvalClip], Conditions]:
    made = [build_clip(protocol, i, e.frames, e.pose, e.actions, e.labels) for i, e in enumerate(recorded)]
    poses = [relative_pose(question.pose) for question in made if question.pose is not None]
    return made, Conditions(pose=torch.from_numpy(np.stack(poses)))


def test_permanence_finds_who_remembers(recorded: list[Episode]) -> None:
    protocol = Protocol(task="permanence", context=3 * LOOK + 5, gone=5, away=AWAY, horizon=3 * LOOK, episodes=CLIPS)
    made, conditions = asked(protocol, recorded)
    measure = TASKS["permanence"].measure
    assert measure is not None

    def means(system: System) -> tuple[dict[str, float], pd.DataFrame]:
        found = pd.DataFrame(measure(lambda some: only(system, some), protocol, made, conditions))
        return dict(found.groupby("metric").value.mean()), found

    def only(system: System, some: Sequence[EvalClip]) -> System:
        if not isinstance(system, SwappedContext):
            return system
        others = [made[(question.episode + 1) % CLIPS].frames for question in some]
        return SwappedContext(NearestPose(), torch.from_numpy(np.stack(others)[:, : protocol.context]))

    ceiling = {"colour": 1, "object_psnr": IDENTICAL_PSNR, "place": 1, "there": 1}
    whole, rows = means(NearestPose())
    assert whole == ceiling and set(rows.distance) == {5 + 2 * LOOK}, "each of three was gone for two others' looks too"
    assert means(Window(99))[0] == ceiling
    ends = means(Window(5 + 2 * LOOK))[0]
    assert ends["colour"] < 0.5 and ends["object_psnr"] < 30, (
        "its window ends right behind what it would have to recall"
    )
    floor, _ = means(CopyLast())
    assert floor["there"] < 0.2 and floor["object_psnr"] < 25
    chance, _ = means(SwappedContext(NearestPose(), torch.empty(0)))
    assert chance["place"] < 0.65 and chance["colour"] < 0.6 < chance["there"]


@pytest.mark.parametrize("known", [2 * LOOK, 4 * LOOK])
def test_cuts_to_the_bare_wall_and_back(recorded: list[Episode], known: int) -> None:
    """Both looks at the first thing are the same, so the task's truth is what is really seen after the cut."""
    protocol = Protocol(task="cuts", context=4 * LOOK, horizon=2 * LOOK, episodes=CLIPS, metrics=["psnr"])
    made, conditions = asked(protocol, recorded)
    for question, episode in zip(made, recorded, strict=True):
        assert (episode.labels["object"][4 * LOOK : 6 * LOOK] == -1).all(), "where the view is cut to, nothing is"
        np.testing.assert_array_equal(question.frames[4 * LOOK :], episode.frames[3 * LOOK + AWAY :][: 2 * LOOK])
    found = pd.DataFrame(score(lambda some: Window(known), protocol, made, conditions)).value
    assert (found == IDENTICAL_PSNR).all() if known >= 4 * LOOK else (found < 40).all()
    assert pd.DataFrame(score(lambda some: CopyLast(), protocol, made, conditions)).value.max() < 40
    assert (pd.DataFrame(score(lambda some: NearestPose(), protocol, made, conditions)).value == IDENTICAL_PSNR).all()


class Things(Chance):
    """Carries what the things of its clips are, among numbers that say nothing; or of the first ones only."""

    def __init__(self, some: Sequence[EvalClip], known: int) -> None:
        things = np.stack([question.labels["object"][: known * LOOK] for question in some])
        noise = np.random.default_rng(some[0].episode).normal(size=(len(some), 3))
        onehot = np.eye(4)[things].reshape(len(some), -1)
        self.numbers = torch.from_numpy(np.concatenate([3 * onehot, noise], 1))

    def carried(self) -> Tensor:
        return self.numbers


def test_questions_ask_what_the_kth_thing_was(recorded: list[Episode]) -> None:
    protocol = Protocol(
        task="questions", context=3 * LOOK + AWAY, horizon=3 * LOOK, label="object", episodes=CLIPS
    )  # fmt: skip
    made, conditions = asked(protocol, recorded)
    measure = TASKS["questions"].measure
    assert measure is not None

    def accuracy(known: int) -> list[float]:
        rows = pd.DataFrame(measure(lambda some: Things(some, known), protocol, made, conditions))
        assert rows.distance.max() == 3 * LOOK + AWAY
        return list(rows.groupby("frame").value.mean())

    nothing = pd.DataFrame(measure(lambda some: Chance(), protocol, made, conditions)).groupby("frame").value.mean()
    usual = [np.bincount([q.labels["object"][frame] for q in made]).max() / CLIPS for frame in range(3 * LOOK)]
    assert nothing.tolist() == pytest.approx(usual)
    assert min(accuracy(3)) > max(usual), "more than the most frequent answer, of each of the three"
