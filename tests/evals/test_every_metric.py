"""The contract of every registered metric: it knows the truth, which way it points, and what it needs."""

from __future__ import annotations

import numpy as np
import pytest

from longtake.evals.metric import Clips, FrameMetric, Metric, SetMetric, TaskMetric
from longtake.evals.registry import ANY_TASK, METRICS, TASKS
from longtake.models.perceptual.weights import FILES

RANDOM = np.random.default_rng(0)
FRAME_METRICS = {name: metric for name, metric in ANY_TASK.items() if isinstance(metric, FrameMetric)}
SET_METRICS = {name: metric for name, metric in ANY_TASK.items() if isinstance(metric, SetMetric)}


def noise(size: int, clips: int = 2, frames: int = 2) -> Clips:
    return RANDOM.integers(0, 256, (clips, frames, size, size, 3), np.uint8)


def test_the_metrics_are_these() -> None:
    frames = ["psnr", "ssim", "lpips_alex", "lpips_vgg", "sharpness", "drift", "motion", "seams"]
    assert [name for name in ANY_TASK if name in (*frames, "fvd")] == [*frames, "fvd"]
    assert set(FRAME_METRICS) >= set(frames) and set(SET_METRICS) >= {"fvd"}
    assert set(METRICS) == {*ANY_TASK, *(name for task in TASKS.values() for name in task.metrics or ())}


@pytest.mark.parametrize("name", METRICS)
def test_it_has_the_face(name: str) -> None:
    metric: Metric = METRICS[name]
    assert metric.title and metric.digits >= 0 and metric.smallest >= 1
    assert metric.weights is None or metric.weights in FILES
    assert metric.heading.startswith(metric.title)
    near, far = (0.5, 2.0) if metric.better != "higher" else (2.0, 0.5)
    assert metric.goodness(near) > metric.goodness(far)
    assert (metric.goodness(-0.5) > metric.goodness(2.0)) == (metric.better != "higher")
    assert not metric.explained or metric.explained.endswith(".")
    assert isinstance(metric, TaskMetric) == (name not in ANY_TASK)


def test_a_name_means_one_thing() -> None:
    for task in TASKS.values():
        for name, metric in (task.metrics or {}).items():
            assert isinstance(metric, TaskMetric) and metric.card.endswith(".")
            assert METRICS[name] == metric, f"{name}: two tasks measure unlike things under one name"
    folders = [metric.folder for metric in SET_METRICS.values()]
    assert len(set(folders)) == len(folders)
    ranks = [metric.rank for metric in ANY_TASK.values()]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("name", FRAME_METRICS)
def test_the_truth_is_the_best_of_all(name: str) -> None:
    """A value per frame; none is better than that of the truth, and clips do not look at one another."""
    metric, size = FRAME_METRICS[name], max(FRAME_METRICS[name].smallest, 16)
    truth, made = noise(size), noise(size) // 2
    values, perfect = metric.measure(truth, made), metric.measure(truth, truth)
    assert values.shape == perfect.shape == (2, 2) and values.dtype == perfect.dtype == np.float64
    goodness = np.vectorize(metric.goodness)
    assert (goodness(perfect) > goodness(values)).all()
    assert metric.measure(truth[1:], made[1:]) == pytest.approx(values[1:], abs=1e-5)


@pytest.mark.parametrize("name", FRAME_METRICS)
def test_it_says_the_smallest_frames_it_can_be_computed_of(name: str) -> None:
    """What is refused before anything starts is what would fail in every cell, and nothing else."""
    metric = FRAME_METRICS[name]
    assert np.isfinite(metric.measure(noise(metric.smallest), noise(metric.smallest))).all()
    if metric.smallest > 1:
        with np.errstate(all="ignore"), pytest.raises((ValueError, AssertionError)):
            assert np.isfinite(metric.measure(noise(metric.smallest - 1), noise(metric.smallest - 1))).all()


@pytest.mark.parametrize("name", SET_METRICS)
def test_a_set_is_nearest_to_itself(name: str) -> None:
    """Of features alone: those of nets are compared with the nets' own in test_golden.py."""
    metric = SET_METRICS[name]
    real, other = (RANDOM.standard_normal((metric.fewest_clips + 3, 5)) for _ in range(2))
    assert abs(metric.distance(real, real)) < 1e-6
    assert metric.goodness(metric.distance(real, real)) > metric.goodness(metric.distance(real, other + 1))
    with pytest.raises(ValueError, match=name):
        metric.distance(real[: metric.fewest_clips - 1], other)
