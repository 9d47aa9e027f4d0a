"""The horizon that is found for planted models is the one that they were built with."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from longtake.evals.baselines import ContextMean, CopyLast
from longtake.evals.bootstrap import bootstrap_interval
from longtake.evals.clip import build_clip
from longtake.evals.memory_horizon import MARGIN_DB, memory_horizon
from longtake.evals.protocol import Protocol
from longtake.evals.scoring import score
from longtake.evals.task import EvalClip
from longtake.models.conditions import Conditions

CONTEXT = 24
RETRIEVAL = Protocol(task="retrieval", context=CONTEXT, horizon=CONTEXT, episodes=6, metrics=["psnr"])


def walks(count: int = 6) -> list[EvalClip]:
    """Clips whose frames change slowly, so that the last one is a fair guess for a while."""
    draw, made = np.random.default_rng(0), []
    for episode in range(count):
        drift = np.cumsum(draw.normal(0, 9, (CONTEXT, 6, 6, 3)), 0) + draw.normal(128, 30, (6, 6, 3))
        frames = np.clip(drift, 0, 255).astype(np.uint8)
        pose, actions = np.zeros((CONTEXT, 3), np.float32), np.zeros((CONTEXT, 2), np.float32)
        made.append(build_clip(RETRIEVAL, episode, frames, pose, actions))
    return made


class WindowOracle:
    """Remembers exactly the last `known` frames, the ones it made included, and nothing that is older."""

    frames_per_step = 1

    def __init__(self, made: Sequence[EvalClip], known: int) -> None:
        self.truth = torch.from_numpy(np.stack([question.frames for question in made]))
        self.at, self.known = CONTEXT, known

    def observe(self, frames: Tensor, conditions: Conditions) -> None:
        """It has the truth already, and uses only what it remembers of it."""

    def step(self, conditions: Conditions) -> Tensor:
        shown = 2 * CONTEXT - 1 - self.at  # the context frame of the same place
        frame = self.truth[:, self.at : self.at + 1]
        known = self.at - shown <= self.known
        self.at += 1
        return frame if known else torch.full_like(frame, 128)


def scored(known: int) -> pd.DataFrame:
    """Rows of a window oracle, of the same with its memory wiped, and of the floors."""
    made = walks()
    conditions = Conditions(pose=torch.zeros(len(made), 2 * CONTEXT, 4))
    systems = {
        "model": WindowOracle(made, known),
        "model/wiped": WindowOracle(made, 0),
        "copy_last": CopyLast(),
        "context_mean": ContextMean(),
    }
    rows = [
        {"task": "retrieval", "protocol": "p", "system": name, **row}
        for name, system in systems.items()
        for row in score(lambda some, system=system: system, RETRIEVAL, made, conditions)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("known", range(3, 2 * CONTEXT - 3, 4))
def test_a_window_oracle_has_the_horizon_of_its_window(known: int) -> None:
    found = memory_horizon(scored(known), "model")
    assert abs(found.frames - known) <= 1
    assert found.low <= found.frames <= found.high <= found.frames + 2
    assert found.lost_to in ("copy_last", "context_mean", "model/wiped")
    assert (found.episodes, found.reach) == (6, 2 * CONTEXT - 1)


def test_a_perfect_oracle_has_all_of_it_and_a_forgetful_model_nothing() -> None:
    whole = memory_horizon(scored(99), "model")
    assert (whole.frames, whole.low, whole.high, whole.lost_to) == (whole.reach,) * 3 + (None,)
    nothing = memory_horizon(scored(0), "model")
    assert (nothing.frames, nothing.low, nothing.high) == (0, 0, 0)
    assert nothing.lost_to in ("context_mean", "model/wiped")


def rows_of(gap: dict[int, float], metric: str = "psnr", noise: float = 0.0) -> list[dict[str, object]]:
    """The model this far above its rivals at each distance."""
    draw = np.random.default_rng(0)
    return [
        {"task": "retrieval", "protocol": "p", "system": system, "metric": metric, "episode": episode}
        | {"distance": distance, "value": 20 + episode + (above + draw.normal(0, noise) if system == "m" else 0)}
        for distance, above in gap.items()
        for episode in range(12)
        for system in ("m", "m/wiped", "copy_last", "context_mean")
    ]


def test_a_lead_must_be_beyond_doubt_and_beyond_the_margin() -> None:
    assert memory_horizon(pd.DataFrame(rows_of({1: 1.0, 3: 1.0, 5: MARGIN_DB / 2})), "m").frames == 4
    noisy = memory_horizon(pd.DataFrame(rows_of({1: 9.0, 3: 9.0, 5: 0.4}, noise=3.0)), "m")
    assert noisy.frames == 4 and noisy.lead_low[2] < 0.4 < noisy.lead_high[2]


def test_the_first_distance_counts_not_the_last() -> None:
    assert memory_horizon(pd.DataFrame(rows_of({1: 1.0, 3: -1.0, 5: 1.0})), "m").frames == 2


def test_where_the_place_is_still_in_view_copying_may_lead() -> None:
    rows = pd.DataFrame(rows_of({1: 1.0, 3: 1.0, 5: 1.0, 7: -1.0}))
    near = (rows.system == "copy_last") & (rows.distance <= 3)
    rows.loc[near, "value"] += 9
    found = memory_horizon(rows, "m")
    assert (found.frames, found.lead[0] < 0) == (6, True)
    rows = pd.DataFrame(rows_of({1: 1.0, 3: 1.0, 5: 1.0}))
    rows.loc[rows.system == "copy_last", "value"] += 9
    assert (memory_horizon(rows, "m").frames, memory_horizon(rows, "m").lost_to) == (0, "copy_last")
    rows.loc[(rows.system == "context_mean") & (rows.distance == 1), "value"] += 9
    assert memory_horizon(rows, "m").lost_to == "context_mean"


def test_lpips_must_not_be_worse_where_it_was_measured() -> None:
    ahead = rows_of({1: 1.0, 3: 1.0, 5: 1.0})
    assert memory_horizon(pd.DataFrame(ahead + rows_of({1: -0.1, 3: 0.0, 5: -0.1}, "lpips_alex")), "m").frames == 5
    assert memory_horizon(pd.DataFrame(ahead + rows_of({1: -0.1, 3: 0.2, 5: -0.1}, "lpips_alex")), "m").frames == 2


def test_a_rival_that_is_missing_is_named() -> None:
    rows = pd.DataFrame(rows_of({1: 1.0}))
    with pytest.raises(ValueError, match="m: a horizon needs the PSNR of m/wiped too"):
        memory_horizon(rows[rows.system != "m/wiped"], "m")
    with pytest.raises(ValueError, match="these scores are of rollout"):
        memory_horizon(rows.assign(task="rollout"), "m")
    with pytest.raises(ValueError, match="fewer than two episodes"):
        memory_horizon(rows[rows.episode == 0], "m")


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw, hits = np.random.default_rng(1), 0
    for _ in range(300):
        low, high = bootstrap_interval(draw.normal(3, 2, 40), resamples=400)
        hits += low < 3 < high
    assert 0.9 < hits / 300 < 0.98
    assert bootstrap_interval(np.array([1.0, 2.0, 3.0])) == bootstrap_interval(np.array([1.0, 2.0, 3.0]))
    assert np.isnan(bootstrap_interval(np.array([1.0]))).all()
