"""Tasks ask what their cards say, and planted systems score what they must."""

import importlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import astronaut
from torch import Tensor

from longtake.evals.baselines import BASELINES, ContextMean, CopyLast, NearestPose
from longtake.evals.clip import build_clip
from longtake.evals.metric import FrameMetric
from longtake.evals.metrics.psnr import IDENTICAL_PSNR, psnr
from longtake.evals.metrics.seams import seams
from longtake.evals.metrics.sharpness import sharpness
from longtake.evals.metrics.ssim import ssim
from longtake.evals.protocol import Protocol
from longtake.evals.registry import METRICS, TASKS
from longtake.evals.scoring import compare, episode_seed, score
from longtake.evals.systems import ModelSystem, System
from longtake.evals.task import EvalClip
from longtake.evals.tasks.cost import lengths
from longtake.models.conditions import Conditions
from longtake.models.config import LayerConfig, ModelConfig, SamplerConfig
from longtake.models.tokenizer import PIXELS
from longtake.models.world_model import WorldModel

RETRIEVAL = Protocol(task="retrieval", context=6, horizon=4, episodes=2)
ROLLOUT = Protocol(task="rollout", context=6, horizon=4, episodes=2)


def questions(protocol: Protocol, count: int = 2, side: int = 16) -> tuple[list[EvalClip], Conditions]:
    draw = np.random.default_rng(0)
    made = []
    for episode in range(count):
        frames = draw.integers(0, 256, (protocol.frames, side, side, 3), dtype=np.uint8)
        pose = draw.normal(size=(protocol.frames, 3)).astype(np.float32)
        made.append(build_clip(protocol, episode, frames, pose, np.zeros((protocol.frames, 2), np.float32)))
    pose = np.stack([np.pad(q.pose, ((0, 0), (0, 1))) for q in made if q.pose is not None])
    return made, Conditions(pose=torch.from_numpy(pose))


def mean(rows: list[dict[str, object]], metric: str = "psnr") -> float:
    return float(np.mean([float(str(row["value"])) for row in rows if row["metric"] == metric]))


def test_retrieval_walks_the_context_back() -> None:
    (question, *_), _ = questions(RETRIEVAL)
    assert np.array_equal(question.frames[6:], question.frames[:6][::-1][:4])
    assert question.distance.tolist() == [3, 5, 7], "the first is the last one shown, and not judged"


REVISIT = Protocol(task="revisit", context=6, horizon=4, episodes=2)


def test_revisits_ask_what_was_shown_in_an_order_of_each_episode_and_never_the_last_frame() -> None:
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    pose, actions = np.zeros((6, 3), np.float32), np.arange(12, dtype=np.float32).reshape(6, 2) + 1
    orders = set()
    for episode in range(40):
        question = build_clip(REVISIT, episode, frames, pose, actions)
        asked = question.frames[6:, 0, 0, 0].astype(int)
        assert question.frames[:6, 0, 0, 0].tolist() == list(range(6))
        assert len(set(asked.tolist())) == 4 and set(asked.tolist()) <= set(range(5))
        assert question.distance.tolist() == (np.arange(6, 10) - asked).tolist() and question.distance.min() > 1
        follows = np.diff(question.frames[:, 0, 0, 0].astype(int)) == 1
        assert (question.actions[1:][~follows] == 0).all() and (question.actions[1:][follows] > 0).all()
        orders.add(tuple(asked.tolist()))
    assert len(orders) > 20, "an order of its own"
    again = build_clip(REVISIT, 39, frames, pose, actions)
    assert again.distance.tolist() == question.distance.tolist()
    other = build_clip(REVISIT.model_copy(update={"seed": 1}), 39, frames, pose, actions)
    assert other.distance.tolist() != question.distance.tolist()
    assert REVISIT.frames == 6 and REVISIT.stream == 10
    assert REVISIT.hash != REVISIT.model_copy(update={"seed": 1}).hash != RETRIEVAL.hash
    with pytest.raises(ValueError, match="horizon: 6 is more than the 5 context frames"):
        build_clip(REVISIT.model_copy(update={"horizon": 6}), 0, frames, pose, actions)


def test_rollout_goes_on_along_the_episode() -> None:
    frames = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    question = build_clip(ROLLOUT, 0, frames, None, np.zeros((10, 2), np.float32))
    assert question.frames[:, 0, 0, 0].tolist() == list(range(10))
    assert question.distance.tolist() == [1, 2, 3, 4]


class Oracle:
    """Knows the truth, or the last `known` frames of the context for ever."""

    frames_per_step = 1

    def __init__(self, made: Sequence[EvalClip], protocol: Protocol, known: int) -> None:
        self.truth = torch.from_numpy(np.stack([q.frames for q in made]))
        self.at, self.context, self.known = protocol.context, protocol.context, known

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        assert frames.shape[1] == self.context  # a system is never shown what it is asked for

    def step(self, conditions: Conditions) -> Tensor:
        steps_back = self.at - self.context
        frame = self.truth[:, self.at : self.at + 1]
        self.at += 1
        return frame if steps_back < self.known else torch.zeros_like(frame)


@pytest.mark.parametrize("protocol", [RETRIEVAL, ROLLOUT])
def test_the_truth_scores_the_ceiling(protocol: Protocol) -> None:
    made, conditions = questions(protocol)
    rows = score(lambda some: Oracle(made, protocol, 99), protocol, made, conditions)
    assert len(rows) == 2 * (3 if protocol is RETRIEVAL else 4) * 2
    assert {row["value"] for row in rows if row["metric"] == "psnr"} == {IDENTICAL_PSNR}
    assert mean(rows, "ssim") == pytest.approx(1)


def test_a_window_oracle_fails_right_behind_its_window() -> None:
    made, conditions = questions(RETRIEVAL)
    rows = pd.DataFrame(score(lambda some: Oracle(made, RETRIEVAL, 2), RETRIEVAL, made, conditions))
    by_distance = rows[rows.metric == "psnr"].groupby("distance").value.max()
    assert (by_distance == IDENTICAL_PSNR).tolist() == [True, False, False]


def test_nearest_pose_is_the_truth_on_the_way_back() -> None:
    made, conditions = questions(RETRIEVAL)
    assert mean(score(lambda some: NearestPose(), RETRIEVAL, made, conditions)) == IDENTICAL_PSNR


@pytest.mark.parametrize("floor", [CopyLast, ContextMean])
def test_floors_are_far_from_the_truth(floor: type[System]) -> None:
    made, conditions = questions(RETRIEVAL)
    rows = score(lambda some: floor(), RETRIEVAL, made, conditions)
    beyond_first = [row for row in rows if row["frame"] != 0]
    assert mean(beyond_first) < 15
    assert set(BASELINES) == {"copy_last", "context_mean", "nearest_pose"}


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    layers = [LayerConfig()] * 2
    config = ModelConfig(height=16, width=16, patch=8, dim=16, heads=2, d_state=8, headdim=8, window=2, layers=layers)
    model = WorldModel(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def rows_of(model: WorldModel, wiped: bool, made: list[EvalClip], conditions: Conditions) -> list[dict[str, object]]:
    seeds = [episode_seed(RETRIEVAL, q.episode) for q in made]
    system = ModelSystem(model, PIXELS, SamplerConfig(steps=2), seeds, wiped=wiped)
    return score(lambda some: system, RETRIEVAL, made, conditions)


def test_the_same_cell_scores_the_same_bitwise(model: WorldModel) -> None:
    made, conditions = questions(RETRIEVAL)
    assert rows_of(model, False, made, conditions) == rows_of(model, False, made, conditions)


def test_a_model_that_was_never_shown_a_context_is_shown_none(model: WorldModel) -> None:
    made, conditions = questions(RETRIEVAL)
    wiped = rows_of(model, True, made, conditions)
    model.shown_context = False
    twin = rows_of(model, False, made, conditions)
    assert wiped == twin


def test_a_wiped_model_does_not_know_its_context(model: WorldModel) -> None:
    made, conditions = questions(RETRIEVAL)
    other = [
        EvalClip(np.concatenate([255 - q.frames[:6], q.frames[6:]]), q.pose, q.actions, q.distance, q.episode)
        for q in made
    ]
    assert rows_of(model, True, made, conditions) == rows_of(model, True, other, conditions)
    assert rows_of(model, False, made, conditions) != rows_of(model, False, other, conditions)


def test_what_a_dataset_cannot_serve_is_named() -> None:
    frames, actions = np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="4 frames, but rollout needs 10"):
        build_clip(ROLLOUT, 7, frames, None, actions)
    with pytest.raises(ValueError, match="no pose"):
        build_clip(RETRIEVAL, 7, np.zeros((6, 8, 8, 3), np.uint8), None, np.zeros((6, 2), np.float32))
    with pytest.raises(ValueError, match="horizon: 1; the first frame of the way back is not judged: 2 at least"):
        build_clip(
            RETRIEVAL.model_copy(update={"horizon": 1}),
            7,
            np.zeros((6, 8, 8, 3), np.uint8),
            np.zeros((6, 3), np.float32),
            np.zeros((6, 2), np.float32),
        )
    with pytest.raises(ValueError, match="horizon: 9 is more than the 6"):
        RETRIEVAL.model_copy(update={"horizon": 9}) and build_clip(
            RETRIEVAL.model_copy(update={"horizon": 9}),
            7,
            np.zeros((6, 8, 8, 3), np.uint8),
            np.zeros((6, 3)),
            actions,
        )


def test_any_field_changes_the_protocols_hash() -> None:
    changes = [
        {"context": 7},
        {"split": "val"},
        {"dataset": "x"},
        {"sampler": SamplerConfig(steps=9)},
        {"seed": 1},
    ]
    hashes = {RETRIEVAL.hash, *(RETRIEVAL.model_copy(update=change).hash for change in changes)}
    assert len(hashes) == 1 + len(changes)


def test_sharpness_sees_what_psnr_forgives() -> None:
    truth, draw = astronaut()[64:128, 192:256], np.random.default_rng(0)
    blurred = np.rint(gaussian_filter(truth.astype(float), (1, 1, 0))).astype(np.uint8)
    noisy = np.clip(truth + draw.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    assert psnr(truth, blurred) > psnr(truth, noisy)
    assert sharpness(truth, truth) == 0
    assert sharpness(truth, blurred) < -6 < 3 < sharpness(truth, noisy)
    assert abs(sharpness(np.zeros_like(truth), np.ones_like(truth))) < 1e-9, "nothing to see in either"


def test_how_a_generation_fails_is_told_by_what_measures_it() -> None:
    """Each failure is planted alone; the truth scores 0 in all."""
    picture, names = astronaut()[64:144, 192:272], ["drift", "motion", "seams"]
    truth = np.stack([picture[t : t + 64, 2 * t : 2 * t + 64] for t in range(6)])[None]
    tiles = truth.astype(int) + 12 * ((np.indices((64, 64)) // 8).sum(0) % 2)[..., None]
    failures = {
        "truth": truth,
        "frozen": np.repeat(truth[:, :1], 6, 1),
        "fading": np.rint(truth * np.linspace(1, 0.5, 6)[:, None, None, None]).astype(np.uint8),
        "tiled": np.clip(tiles, 0, 255).astype(np.uint8),
        "flicker": np.clip(truth + 30 * (np.arange(6) % 2)[:, None, None, None], 0, 255).astype(np.uint8),
    }
    protocol = Protocol.model_validate({"task": "rollout", "context": 1, "horizon": 6, "episodes": 1, "metrics": names})
    frames, actions = np.concatenate([truth[0, :1], truth[0]]), np.zeros((7, 2), np.float32)
    question = EvalClip(frames, None, actions, np.arange(6) + 1, 0)
    found = {
        name: pd.DataFrame(compare(protocol, [question], made)).pivot(index="frame", columns="metric", values="value")
        for name, made in failures.items()
    }
    assert found["truth"].abs().max().max() < 1e-9
    assert found["frozen"].motion.max() < -10 and found["flicker"].motion.min() > 1
    assert found["fading"].drift.is_monotonic_increasing and found["fading"].drift.iloc[-1] > 30
    assert found["tiled"].seams.min() > 1 and found["fading"].seams.abs().max() < 0.5
    with pytest.raises(ValueError, match="seams: frames are 8x8, without a border every 8"):
        seams(truth[0, 0, :8, :8], truth[0, 0, :8, :8])


def test_frames_of_all_clips_go_through_a_net_together() -> None:
    protocol = RETRIEVAL.model_copy(update={"metrics": ["lpips_alex", "sharpness", "psnr"]})
    made, conditions = questions(protocol, side=32)
    rows = score(lambda some: CopyLast(), protocol, made, conditions)
    assert [row["metric"] for row in rows[:3]] == ["lpips_alex", "sharpness", "psnr"]
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        clip = made[row["episode"]].frames
        truth, copied = clip[6 + row["frame"]][None, None], clip[5][None, None]
        metric = METRICS[row["metric"]]
        assert isinstance(metric, FrameMetric)
        assert row["value"] == pytest.approx(metric.measure(truth, copied).item(), abs=1e-6)


def test_metrics_are_those_of_the_field() -> None:
    truth = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    off = np.clip(truth.astype(int) + 5, 0, 255).astype(np.uint8)
    error = np.mean((truth.astype(float) - off) ** 2)
    assert psnr(truth, off) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    assert psnr(truth, truth) == IDENTICAL_PSNR
    assert ssim(truth, truth) == pytest.approx(1)
    assert 0.9 < ssim(truth, off) < 1


MIRROR = Protocol(task="mirror", context=3, horizon=6, episodes=2, metrics=["psnr"])


class Counter:
    """Makes frames of one value each, counted up, or the truth of its own way where it remembers it."""

    frames_per_step = 1

    def __init__(self, remembers: int) -> None:
        self.made: list[int] = []
        self.remembers = remembers

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        self.clips = frames.shape[0]

    def step(self, conditions: Conditions) -> Tensor:
        back = len(self.made) - 3
        self.made.append(self.made[2 - back] if 0 <= back < self.remembers else 40 * len(self.made))
        return torch.full((self.clips, 1, 16, 16, 3), self.made[-1], dtype=torch.uint8)


def test_mirror_asks_a_model_for_what_it_made_itself() -> None:
    made, conditions = questions(MIRROR)
    assert made[0].frames.shape[0] == 3 + 6 and np.array_equal(made[0].frames[3:6], made[0].frames[6:][::-1])
    rows = pd.DataFrame(score(lambda some: Counter(remembers=2), MIRROR, made, conditions))
    assert rows.drop_duplicates("frame")[["frame", "distance"]].values.tolist() == [[3, 1], [4, 3], [5, 5]]
    assert (rows.value == IDENTICAL_PSNR).groupby(rows.distance).all().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="horizon: 5 is odd"):
        build_clip(
            MIRROR.model_copy(update={"horizon": 5}),
            7,
            np.zeros((9, 8, 8, 3), np.uint8),
            np.zeros((9, 3), np.float32),
            np.zeros((9, 2), np.float32),
        )


def test_teco_judges_the_156_frames_after_144_of_300() -> None:
    protocol = Protocol(task="teco", context=144, horizon=156, episodes=2, metrics=["ssim", "psnr", "lpips_alex"])
    frames = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    question = build_clip(protocol, 3, frames, None, np.zeros((300, 2), np.float32))
    conditions = Conditions(actions=torch.zeros(1, 300, 2))
    rows = pd.DataFrame(score(lambda some: CopyLast(), protocol, [question], conditions))
    assert protocol.frames == 300 and np.array_equal(question.frames, frames)
    assert rows.groupby("metric").frame.agg(["min", "max", "count"]).values.tolist() == [[0, 155, 156]] * 3
    expected = [psnr(frames[144 + j], frames[143]) for j in range(156)]
    assert rows[rows.metric == "psnr"].value.tolist() == pytest.approx(expected)
    wrong = Protocol(task="teco_clips", context=36, horizon=100, metrics=["fvd"])
    with pytest.raises(ValueError, match="horizon: context 36 and horizon 100 are not the 300 frames.*set it to 264"):
        assert wrong.frames


def test_cost_grows_with_the_context_only_where_memory_does(model: WorldModel) -> None:
    protocol = Protocol(task="cost", context=16, horizon=2, episodes=2)
    made, conditions = questions(protocol)

    def build(some: Sequence[EvalClip]) -> System:
        return ModelSystem(model, PIXELS, SamplerConfig(steps=1), [0] * len(some))

    measure = TASKS["cost"].measure
    assert measure is not None and protocol.metrics == ["prefill_ms", "step_ms", "memory_bytes"]
    rows = pd.DataFrame(measure(build, protocol, made, conditions))
    assert rows.groupby(["episode", "metric"]).distance.apply(list).tolist() == [[4, 8, 16]] * 6
    assert rows[rows.metric == "memory_bytes"].value.nunique() == 1, "a state and a window are all that it carries"
    assert (rows.value > 0).all() and (rows.frame == rows.distance).all()
    assert lengths(18, 6) == [6, 12, 18] and lengths(2, 1) == [2]
    floor = measure(lambda some: CopyLast(), protocol, made[:1], conditions)
    assert {row["metric"] for row in floor} == {"prefill_ms", "step_ms"}, "what a system does not tell is left out"


def test_a_task_refuses_the_metrics_of_others() -> None:
    with pytest.raises(ValueError, match="metrics: cost has no psnr; it has prefill_ms, step_ms, memory_bytes"):
        Protocol(task="cost", metrics=["psnr"])
    with pytest.raises(ValueError, match="metrics: rollout has no step_ms"):
        Protocol(task="rollout", metrics=["psnr", "step_ms"])


def test_every_task_has_its_card() -> None:
    for name in TASKS:
        card = importlib.import_module(f"longtake.evals.tasks.{name}").__doc__
        assert card and len(card) > 200, name


def test_cuts_lead_away_and_back_to_where_the_path_began() -> None:
    protocol = Protocol(task="cuts", context=6, horizon=2, episodes=2, metrics=["psnr"])
    assert protocol.frames == 9 and protocol.stream == 8
    made, conditions = questions(protocol)
    order, distance = TASKS["cuts"].frame_order(protocol)
    assert order.tolist() == [0, 1, 2, 6, 7, 8, 0, 1] and distance.tolist() == [6, 6]
    assert mean(score(lambda some: NearestPose(), protocol, made, conditions)) == IDENTICAL_PSNR
    assert mean(score(lambda some: CopyLast(), protocol, made, conditions)) < 15
    for change, told in (({"context": 7}, "context: 7 is odd"), ({"horizon": 4}, "more than the 3 frames before")):
        with pytest.raises(ValueError, match=told):
            assert protocol.model_copy(update=change).frames


def test_published_rows_of_teco_stand_under_their_own_world() -> None:
    from longtake.evals.tasks import teco

    card = str(teco.__doc__)
    minecraft, dmlab = card.split("Minecraft: ")[1].split("DMLab: ")
    assert all(row in minecraft for row in ("TECO 0.381 / 15.4", "FAR-M-Long 0.448 / 16.9", "SCD-M 0.524 / 19.3"))
    assert "FAR-B-Long 0.687 / 22.3" in dmlab and not any(name in dmlab for name in ("FAR-M", "SCD-M", "0.381"))
