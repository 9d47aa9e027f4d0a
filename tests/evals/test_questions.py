"""A probe finds what a memory holds, and nothing that it does not hold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from longtake.evals.baselines import Chance, CopyLast, RawFrames
from longtake.evals.clip import build_clip
from longtake.evals.controls import SwappedContext
from longtake.evals.linear_probe import out_of_fold
from longtake.evals.protocol import Protocol
from longtake.evals.registry import TASKS
from longtake.evals.systems import ModelSystem, System
from longtake.evals.task import EvalClip
from longtake.evals.tasks.questions import classes
from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel

CONTEXT, CLIPS = 8, 80
PROTOCOL = Protocol(task="questions", context=CONTEXT, horizon=CONTEXT, episodes=CLIPS)


def clips() -> list[EvalClip]:
    """Clips whose frames are tinted at random, each frame anew."""
    draw, made = np.random.default_rng(0), []
    for episode in range(CLIPS):
        tint = draw.normal(0, 40, (CONTEXT, 1, 1, 1)) * np.array([1, 0, -1])
        frames = np.clip(128 + tint + draw.normal(0, 10, (CONTEXT, 16, 16, 3)), 0, 255).astype(np.uint8)
        labels = {"object": np.full(CONTEXT, episode % 3) + 5}
        made.append(build_clip(PROTOCOL, episode, frames, None, np.zeros((CONTEXT, 2), np.float32), labels))
    return made


CLIPS_MADE = clips()
CONDITIONS = Conditions(actions=torch.zeros(CLIPS, CONTEXT, 2))


class Recalls(Chance):
    """Carries how warm each of the last `known` frames was, among numbers that say nothing."""

    def __init__(self, known: int) -> None:
        self.known = known

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        warm = (frames[..., 0].float() - frames[..., 2].float()).mean((2, 3))[:, CONTEXT - self.known :]
        noise = torch.randn(len(frames), 3, generator=torch.Generator().manual_seed(int(frames.float().sum()) % 1000))
        self.numbers = torch.cat([warm / 40, noise], 1)

    def carried(self) -> Tensor:
        return self.numbers


def accuracy(build: object, protocol: Protocol = PROTOCOL) -> pd.Series:
    """Mean over clips by distance."""
    measure = TASKS["questions"].measure
    assert measure is not None
    rows = pd.DataFrame(measure(build, protocol, CLIPS_MADE, CONDITIONS))  # type: ignore[arg-type]
    assert len(rows) == CLIPS * CONTEXT and set(rows.metric) == {"accuracy"}
    return rows.groupby("distance").value.mean()


@pytest.mark.parametrize("known", [0, 3, CONTEXT])
def test_a_memory_of_k_frames_answers_for_k_frames(known: int) -> None:
    found = accuracy(lambda some: Recalls(known))
    assert found.index.tolist() == list(range(1, CONTEXT + 1))
    assert (found[:known] > 0.85).all() and ((found[known:] - 0.5).abs() < 0.2).all()
    assert abs(found[known:].mean() - 0.5) < 0.08 or known == CONTEXT


def test_nothing_carried_is_chance_and_the_frames_themselves_are_the_ceiling() -> None:
    assert accuracy(lambda some: Chance()).tolist() == [0.5] * CONTEXT
    assert accuracy(lambda some: RawFrames()).mean() > 0.8


def test_a_model_is_asked_by_its_memory_alone() -> None:
    torch.manual_seed(0)
    told = {"height": 16, "width": 16, "patch": 8, "dim": 16, "heads": 2, "d_state": 8, "headdim": 8, "window": 2}
    config = ModelConfig(**told, conditions="actions", action_dim=2, layers=[LayerConfig()] * 2)
    model = WorldModel(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)

    def system(some: Sequence[EvalClip], wiped: bool = False) -> ModelSystem:
        return ModelSystem(model, PIXELS, SamplerConfig(), [0] * len(some), wiped=wiped)

    def stranger(some: Sequence[EvalClip]) -> System:
        others = [CLIPS_MADE[(question.episode + 1) % CLIPS].frames for question in some]
        return SwappedContext(system(some), torch.from_numpy(np.stack(others)))

    own = accuracy(system)
    assert own[1] > 0.75, "the last frame is in its window"
    assert accuracy(lambda some: system(some, wiped=True)).tolist() == [0.5] * CONTEXT
    assert abs(accuracy(stranger).mean() - 0.5) < 0.1


def test_labels_of_the_dataset_may_be_asked() -> None:
    protocol = PROTOCOL.model_copy(update={"label": "object"})
    asked = classes(protocol, CLIPS_MADE)
    assert asked[:4, 0].tolist() == [0, 1, 2, 0]
    vectors = np.eye(3)[asked[:, 0]] + np.random.default_rng(0).normal(0, 0.1, (CLIPS, 3))
    assert out_of_fold(vectors, asked).all()
    usual = np.bincount(asked[:, 0]).max() / CLIPS
    assert accuracy(lambda some: Chance(), protocol).tolist() == pytest.approx([usual] * CONTEXT)


def test_what_cannot_be_asked_is_told() -> None:
    with pytest.raises(ValueError, match="9 is more than the 8 frames that can be asked of"):
        assert PROTOCOL.model_copy(update={"horizon": 9}).frames
    with pytest.raises(ValueError, match="episodes: 9 are too few to train a probe on; at least 10"):
        assert PROTOCOL.model_copy(update={"episodes": 9}).frames
    with pytest.raises(ValueError, match="CopyLast has no carried"):
        accuracy(lambda some: CopyLast())
