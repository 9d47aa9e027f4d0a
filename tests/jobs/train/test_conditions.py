"""What a model is told: every kind of condition from the data to the checkpoint, and back in an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from longtake.config import load
from longtake.datasets.episode import Episode
from longtake.datasets.writer import DatasetWriter
from longtake.errors import UserError
from longtake.evals.protocol import Protocol
from longtake.jobs.evaluate import cell as cells
from longtake.jobs.evaluate.cells import ScoreCell
from longtake.jobs.train import command as train
from longtake.jobs.train import normalise
from longtake.jobs.train import plan as train_plan
from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loss import TrainingLoss
from longtake.jobs.train.world_model import Edge
from longtake.models.conditions import from_recording
from longtake.models.description import read_world_model
from longtake.models.normalisation import Normalisation
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel
from longtake.storage.store import Store, open_store
from longtake.streaming.clips import load_clips
from longtake.training import checkpoints

FRAMES, FPS = 16, 8.0
TOY = """
name: toy
steps: 6
workers: 0
checkpoint_every: 2
data: {dataset: flights, frames_per_step: 16, curriculum: [{frames: 8}], base_segment: 4}
model:
  height: 16
  width: 16
  dim: 16
  heads: 2
  window: 2
  d_state: 4
  headdim: 8
  layers: [{mixer: ssm, spatial_block: [1, 1]}, {mixer: ssm, spatial_block: [2, 2]}]
engine: {backend: torch, warmup: 1, lr: 1.0e-2}
validation: {every: 3, clips: 2}
"""


def written(store: Store, name: str, gain: float = 1.0, offset: float = 0.0, like: str | None = None) -> None:
    """Flights of a camera: actions and places in other units by `gain` and `offset`, all else the same."""
    about = {"fps": FPS, "action_space": {"push": "N"}, "pose": [*"xyz", "qx", "qy", "qz", "qw"]}
    writer = DatasetWriter(store, name, recipe={}, **about, pose_kind="se3", test=0.2)
    episodes = []
    for number in range(20):
        rng = np.random.default_rng(number)
        frames = rng.integers(0, 256, (FRAMES, 16, 16, 3), dtype=np.uint8)
        actions = (gain * rng.normal(size=(FRAMES, 2)) + offset).astype(np.float32)
        actions[0] = 0
        place = gain * rng.normal(size=(FRAMES, 3))
        pose = np.concatenate([place, Rotation.random(FRAMES, rng=rng).as_quat()], 1).astype(np.float32)
        state = {"joints": rng.normal(3, 2, (FRAMES, 5)).astype(np.float32)}
        episodes.append(Episode(frames, actions, pose, {"task": ("lift", "drop")[number % 2]}, state))
    writer.write_shard(0, episodes)
    writer.finalize(1, like=None if like is None else store.dataset(like))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditions")
    store = open_store(folder / "store")
    written(store, "flights")
    written(store, "scaled", 8.0, 3.0, like="flights")
    (folder / "toy.yaml").write_text(TOY)
    return folder


def config_of(place: Path, *overrides: str) -> WorldModelTraining:
    common = ("data.clip=forward", "data.dataset=flights", "steps=3")
    return load(WorldModelTraining, place / "toy.yaml", [*common, *overrides], search=train.CONFIGS)


def trained(place: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Weights after a few steps."""
    config = config_of(place, "model.conditions=both", "model.pose=se3", *overrides)
    data = open_store(place / "store").dataset(str(config.data.dataset))
    plan, edge = train_plan.build_plan(config, data, "train"), Edge(config, data, PIXELS, "cpu")
    torch.manual_seed(0)
    model = WorldModel(config.model)
    for parameter in model.parameters():
        if not parameter.any():  # else branches are closed at first, and nothing that is told is heard
            torch.nn.init.normal_(parameter, std=0.2)
    objective, optimizer = TrainingLoss(config, model, model), torch.optim.SGD(model.parameters(), lr=1e-2)
    for step in range(config.steps):
        optimizer.zero_grad()
        for part in objective.losses(edge.batch(load_clips(data, plan.batch(step))), step):
            part.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.state_dict()


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("scale", ["standard", "quantiles"])
def test_units_of_actions_and_places_change_nothing_that_is_learnt(place: Path, scale: str) -> None:
    """Actions times 8 and 3 more, places times 8: the same weights, but for the rounding of float32."""
    told = (f"data.conditions.actions={scale}", "data.conditions.cell=data")
    ours = trained(place, *told)
    far = apart(trained(place), trained(place, "data.dataset=scaled"))
    near = apart(ours, trained(place, *told, "data.dataset=scaled"))
    assert near < 1e-4 < 1e-2 < far, "as recorded the units are learnt with"


ALL = (
    "model.conditions=[pose, actions, state, task, time]",
    "model.pose=se3",
    "model.state_dim=5",
    "model.tasks=2",
    "data.conditions={actions: standard, state: joints, cell: data}",
)


def test_a_checkpoint_keeps_it_and_an_evaluation_tells_the_same(place: Path) -> None:
    """Of the same frames of the same episode the model is told the same numbers, in training and when it is scored."""
    store, config = open_store(place / "store"), config_of(place, *ALL)
    train.check(config, store)
    run = train.train(config, store)
    with checkpoints.opened(store, run, config.steps) as folder:
        kept = read_world_model(folder).normalisation
        assert "normalisation" in json.loads((folder / "config.json").read_text())
    data = store.dataset("flights")
    assert kept == normalise.normalisation_of(config, data)
    assert kept.tasks == ("drop", "lift") and kept.cell != 1 and kept.actions is not None
    protocol = Protocol(task="rollout", context=4, horizon=4, episodes=2)
    batch = train_plan.build_plan(config, data, "test").batch(0)
    clips = load_clips(data, batch, labels=normalise.labels_of(config))
    episode, start = int(clips.episode[0]), int(clips.start[0])
    seen = normalise.conditions_of(clips, data, kept, 1).clips(0, 1)
    asked = protocol.model_copy(update={"start": start})
    cell = ScoreCell(store.uri, "flights", asked, "toy", run, config.steps, "whole", (episode,))
    scored = cells.conditions_of(cell, [cells.read_clip(cell, episode)])
    for name in ("pose", "actions", "state", "task", "time"):
        torch.testing.assert_close(getattr(scored, name), getattr(seen, name), rtol=0, atol=0)
    assert scored.time is not None and scored.time[0].tolist() == [n / FPS for n in range(8)]
    assert len(cells.score_cell(cell)) == 4 * 2


def test_what_goes_in_comes_out_in_the_units_of_the_recording(place: Path) -> None:
    data = open_store(place / "store").dataset("scaled")
    kept = normalise.normalisation_of(config_of(place, *ALL, "data.dataset=scaled"), data)
    assert kept.actions is not None
    raw = data.read(0).actions[1:]
    np.testing.assert_allclose(kept.actions.undo(kept.actions.apply(raw)), raw, rtol=1e-6)
    stacked = np.tile(raw, (1, 3))
    np.testing.assert_array_equal(kept.actions.apply(stacked), np.tile(kept.actions.apply(raw), (1, 3)))
    with pytest.raises(ValueError, match="3 columns, but the statistics are of 2"):
        kept.actions.apply(np.zeros((4, 3), np.float32))
    told = from_recording(kept, raw[None], np.arange(len(raw))[None] > 0)
    assert told.actions is not None and not told.actions[0, 0].any() and told.actions[0, 1:].any(), "null is zeros"
    as_recorded = from_recording(Normalisation(), raw[None], np.ones((1, len(raw)), bool))
    assert as_recorded.actions is not None and np.array_equal(as_recorded.actions.numpy()[0], raw)
    assert kept.task_rows(["lift", None, "fly", "drop"]).tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("model.conditions=pose",), "model.pose: planar, but poses of flights are se3"),
        (("model.conditions=[state]",), "data.conditions.state: is required"),
        (("model.conditions=[state]", "data.conditions.state=joint"), "unknown label.*did you mean joints"),
        (("model.conditions=[state]", "data.conditions.state=joints"), "set model.state_dim=5"),
        (("model.conditions=actions", "data.conditions.state=joints"), "the model is told no state"),
        (("model.conditions=[task]",), "model.tasks: 1, but flights has 2 tasks: set model.tasks=2"),
        (("model.conditions=[time]", "data.clip=palindrome"), "data.clip: palindrome goes with"),
        (("model.conditions=[pose, flight]",), "flight"),
    ],
)
def test_what_the_data_cannot_tell_is_refused(place: Path, settings: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        train.check(config_of(place, *settings), open_store(place / "store"))


def test_places_out_of_scale_are_warned_of(place: Path) -> None:
    store = open_store(place / "store")
    told = ("model.conditions=pose", "model.pose=se3", "data.dataset=scaled")
    line = normalise.warning(config_of(place, *told, "data.conditions.cell=0.1"), store.dataset("scaled"))
    assert line is not None and "set data.conditions.cell=data" in line
    assert normalise.warning(config_of(place, *told, "data.conditions.cell=data"), store.dataset("scaled")) is None
