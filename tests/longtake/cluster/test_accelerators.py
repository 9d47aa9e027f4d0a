"""How many cards `auto` comes to, and what is said of those that would stay idle."""

from __future__ import annotations

import pytest
import torch

from longtake.cluster import accelerators
from longtake.cluster.accelerators import AUTO
from longtake.jobs.train.config import WorldModelTraining
from longtake.training.engine_config import EngineConfig


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("asked", "processes", "there", "shared", "each"),
    [
        (AUTO, 1, 1, False, 1.0),
        (AUTO, 8, 8, False, 1.0),
        (AUTO, 2, 8, False, 1.0),
        (AUTO, 2, 1, False, 0.0),  # NCCL wants a card for each rank
        (AUTO, 1, 0, False, 0.0),
        (AUTO, 4, 1, True, 0.25),
        (AUTO, 4, 3, True, 0.5),
        (AUTO, 4, 0, True, 0.0),
        (0.0, 1, 8, False, 0.0),
        (0.5, 2, 1, False, 0.5),
    ],
)
def test_a_worker_takes_a_card_where_there_is_one_for_each(
    asked: accelerators.Gpus, processes: int, there: int, shared: bool, each: float
) -> None:
    found = accelerators.resolve(asked, processes, there, shared=shared)
    assert found == each
    assert asked != AUTO or found * processes <= there


def test_what_is_not_said_takes_a_card_and_computes_in_bf16_there() -> None:
    """Both were off: a config made for a GPU ran on a CPU."""
    assert WorldModelTraining.model_fields["gpus_per_worker"].default == AUTO
    assert [EngineConfig().precision_on(device) for device in ("cuda", "cuda:3", "cpu")] == ["autocast"] * 2 + ["fp32"]
    assert EngineConfig(precision="fp32").precision_on("cuda") == "fp32"


def test_idle_cards_are_told_with_what_to_do() -> None:
    (line,) = accelerators.idle_warnings(1.0, 1, 8)
    assert line.startswith("7 of 8 GPUs stay idle: 1 worker x 1 GPU; set workers=8")
    (line,) = accelerators.idle_warnings(0.0, 2, 1)
    assert line.startswith("1 of 1 GPUs stay idle: 2 workers x 0 GPU; set workers=1: ranks share no card")
    assert not accelerators.idle_warnings(1.0, 8, 8) and not accelerators.idle_warnings(0.25, 4, 1)


def test_a_cluster_is_shared_but_a_job_without_cards_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert not accelerators.idle_warnings(1.0, 1, 8)
    assert accelerators.idle_warnings(0.0, 1, 8)
    (line,) = accelerators.idle_warnings(1.0, 8, accelerators.UNKNOWN)
    assert "it waits for them, or set gpus_per_worker=0" in line


def test_cards_that_pytorch_cannot_use_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators.Path, "glob", lambda self, pattern: iter([self / "nvidia0"]))
    monkeypatch.setattr(torch.version, "cuda", None)
    (line,) = accelerators.idle_warnings(0.0, 1, 0)
    assert line.startswith("1 NVIDIA GPU of this machine cannot be used by PyTorch") and "a build without CUDA" in line
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver is too old for it (CUDA 13.0 needs 580 or newer)" in accelerators.idle_warnings(0.0, 1, 0)[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not accelerators.idle_warnings(0.0, 1, 0)
