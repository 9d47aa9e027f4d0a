"""Every task measures memory: the truth scores its ceiling, copy-last-frame its floor, a window what it holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from longtake.evals.baselines import Chance, ContextMean, CopyLast, NearestPose, RawFrames
from longtake.evals.clip import build_clip
from longtake.evals.memory_horizon import TASK, memory_horizon
from longtake.evals.metrics.fvd import frechet_distance
from longtake.evals.metrics.psnr import IDENTICAL_PSNR
from longtake.evals.protocol import Protocol
from longtake.evals.registry import METRICS, TASKS
from longtake.evals.scoring import score
from longtake.evals.systems import System
from longtake.evals.task import EvalClip
from longtake.models.conditions import Conditions
from tests.evals.planted import Truth, Window
from tests.evals.test_permanence import PROTOCOL as PERMANENCE
from tests.evals.test_permanence import clips as permanence_clips
from tests.evals.test_permanence import means as permanence_means

CLIPS = 12
FRAMES: dict[str, dict[str, float]] = {
    "retrieval": {"context": 12, "horizon": 12},
    "revisit": {"context": 12, "horizon": 11},
    "reasoning": {"context": 12, "horizon": 12, "seen_within": 0.1},
    "two_walks": {"context": 12, "horizon": 12, "seen_within": 0.1},
    "cuts": {"context": 12, "horizon": 6},
    "rollout": {"context": 12, "horizon": 12},
    "mirror": {"context": 12, "horizon": 12},
    "teco": {"context": 144, "horizon": 156},
    "teco_clips": {"context": 36, "horizon": 264},
}
"""The tasks that compare frames; the rest measure in their own way."""
OWN = {name for name, task in TASKS.items() if task.measure is not None}
SHORT: dict[str, float] = {"context": 12, "horizon": 6}
LENGTHS: dict[str, dict[str, float]] = {"permanence": {"context": 20, "horizon": 4}}


def walks(protocol: Protocol) -> tuple[list[EvalClip], Conditions]:
    """Clips that turn once around in twenty frames, again and again, so that every place is seen again."""
    draw, made, poses = np.random.default_rng(0), [], []
    for episode in range(CLIPS):
        places = draw.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        yaw = 2 * np.pi * np.arange(protocol.frames) / 20
        pose = np.stack([np.zeros_like(yaw), np.zeros_like(yaw), yaw], 1).astype(np.float32)
        frames = places[np.arange(protocol.frames) % 20]
        question = build_clip(protocol, episode, frames, pose, np.zeros((len(frames), 2), np.float32))
        assert question.pose is not None
        turn = question.pose[:, 2]
        poses.append(np.stack([0 * turn, 0 * turn, np.cos(turn), np.sin(turn)], 1))
        made.append(question)
    return made, Conditions(pose=torch.from_numpy(np.stack(poses)))


def scored(task: str, system: Callable[[Sequence[EvalClip]], System]) -> pd.DataFrame:
    protocol = Protocol.model_validate(
        {"task": task, "episodes": CLIPS, "metrics": ["psnr"], **FRAMES.get(task, SHORT)}
    )
    made, conditions = walks(protocol)
    return pd.DataFrame(score(lambda some: system(made), protocol, made, conditions))


def test_all_tasks_are_here() -> None:
    assert set(TASKS) >= set(FRAMES) and {"permanence", "questions", "cost", "capacity"} <= OWN


@pytest.mark.parametrize("name", TASKS)
def test_it_has_the_face(name: str) -> None:
    """What it says of itself fits together, and no field of it means something else elsewhere."""
    task, card = TASKS[name], sys.modules[f"longtake.evals.tasks.{name}"].__doc__
    assert len(str(card)) > 100 and (task.measure is None) == (task.metrics is None)
    own = set(task.fields.model_fields)
    assert not own & set(Protocol.__annotations__), "a field of all protocols is none of its own"
    for other in TASKS.values():
        assert (
            not own & set(other.fields.model_fields)
            or issubclass(other.fields, task.fields)
            or issubclass(task.fields, other.fields)
        ), "two tasks mean unlike things by one field"
    asked = Protocol.model_validate({"task": name, **LENGTHS.get(name, FRAMES.get(name, SHORT))})
    assert own <= set(asked.model_dump()) and asked.metrics[0] in (task.metrics or METRICS)
    order, distance = task.frame_order(asked)
    assert len(order) >= asked.context and len(distance) > 0 and (order >= 0).all() and order.dtype == np.int64
    assert task.label_field is None or task.label_field[0] in own
    assert task.report.rank >= 0 and task.report.distance.endswith(".")


@pytest.mark.parametrize("task", [name for name in TASKS if name not in OWN])
def test_the_truth_is_the_ceiling_and_the_last_frame_the_floor(task: str) -> None:
    ceiling = scored(task, lambda made: Truth(made, int(FRAMES.get(task, SHORT)["context"])))
    assert (ceiling.value == IDENTICAL_PSNR).all() and ceiling.episode.nunique() == CLIPS
    floor = scored(task, lambda made: CopyLast())
    if task == "mirror":  # as its card says: the same frame for ever agrees with itself
        assert (floor.value == IDENTICAL_PSNR).all()
        return
    again = floor.value == IDENTICAL_PSNR  # where the last frame is what is asked for
    assert again.mean() < 0.1 and floor.value[~again].max() < 12


def test_fvd_of_the_truth_is_zero_and_of_the_last_frame_is_not() -> None:
    """teco_clips is judged by it; features stand in for the net's, which are tested elsewhere."""
    protocol = Protocol.model_validate({"task": "teco_clips", "metrics": ["fvd"], **FRAMES["teco_clips"]})
    made, _ = walks(protocol)
    real = np.stack([question.frames[::30].reshape(-1)[:400] for question in made]).astype(np.float64)
    copied = np.stack([np.repeat(question.frames[35], 11, 0).reshape(-1)[:400] for question in made])
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6) and frechet_distance(real, copied) > 1e3


@pytest.mark.parametrize("known", range(1, 24, 2))
def test_the_horizon_of_a_window_is_the_window(known: int) -> None:
    """It remembers exactly the last frames of the stream, shown or made: what it knows is asked one place after
    another, and the first that it does not know ends its horizon."""
    systems = {"m": Window(known), "m/wiped": Window(0), "copy_last": CopyLast(), "context_mean": ContextMean()}
    rows = [scored(TASK, lambda made, s=s: s).assign(system=name) for name, s in systems.items()]
    found = memory_horizon(pd.concat(rows).assign(task=TASK, protocol="p"), "m")
    assert abs(found.frames - known) <= 1 and found.reach == 2 * FRAMES[TASK]["horizon"] - 1
    assert found.low <= found.frames <= found.high


@pytest.mark.parametrize("task", ["reasoning", "two_walks", "cuts", "revisit"])
def test_a_window_knows_what_lies_within_it(task: str) -> None:
    for known in (5, 8, 12, 18, 24):
        rows = scored(task, lambda made, known=known: Window(known))
        rows = rows[rows.stratum == "seen"] if "stratum" in rows else rows
        right = rows.value == IDENTICAL_PSNR
        assert (right == (rows.distance <= known)).all() and len(rows)


def test_questions_and_permanence_tell_who_remembers_from_who_does_not() -> None:
    whole, conditions = permanence_clips(PERMANENCE)
    asked = Protocol(task="questions", context=15, horizon=3, label="object", episodes=len(whole))
    distance = TASKS["questions"].frame_order(asked)[1]
    made = [replace(question, frames=question.frames[:15], distance=distance) for question in whole]
    conditions = conditions.frames(0, 15)
    measure = TASKS["questions"].measure
    assert measure is not None

    def accuracy(build: Callable[[], System]) -> float:
        return float(pd.DataFrame(measure(lambda some: build(), asked, made, conditions)).value.mean())

    assert accuracy(Chance) == pytest.approx(0.25) and accuracy(RawFrames) > 0.9
    assert accuracy(lambda: Window(13)) > 0.9, "the last frame of the look is the thirteenth from the end"
    assert abs(accuracy(lambda: Window(12)) - 0.25) < 0.12, "and not the twelfth"
    assert permanence_means(lambda some: NearestPose())["colour"] == 1
    assert permanence_means(lambda some: Window(13))["colour"] == 1
    assert permanence_means(lambda some: Window(12))["there"] == 0
