"""Means and differences of scores: over episodes, paired, and never of unlike protocols."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

import longtake
from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.tables import table as tables
from longtake.tables.scores import paired_difference, summarise

DEFINITIONS = {
    hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:12]: definition
    for definition in (
        {"task": "retrieval", "context": context, "sampler": {"steps": context // 8, "kind": "ddim"}}
        for context in (48, 32)
    )
}
P, Q = DEFINITIONS  # in the order of the alphabet, which is that of a message


def scores(a: Sequence[float], b: Sequence[float], protocols: tuple[str, str] = (P, P)) -> pd.DataFrame:
    rows = [
        {
            "system": name,
            "protocol": protocol,
            "episode": episode,
            "distance": distance,
            "metric": "psnr",
            "value": v,
        }
        for name, values, protocol in zip("ab", (a, b), protocols, strict=True)
        for episode, v in enumerate(values)
        for distance in (1, 9)
    ]
    return pd.DataFrame(rows).assign(task="retrieval", run="r", checkpoint=1)


def test_differences_are_paired_over_episodes() -> None:
    gap = paired_difference(scores([10, 20, 30, 41], [9, 19, 29, 39]), "a", "b", beyond=4)
    assert gap.mean == pytest.approx(1.25)
    assert 0 < gap.low < 1.25 < gap.high  # the spread between episodes does not count
    assert gap.episodes == 4


def test_unlike_protocols_are_not_compared() -> None:
    with pytest.raises(ValueError, match=f"different protocols: {P}, {Q}"):
        paired_difference(scores([1, 2], [1, 2], (P, Q)), "a", "b")


def test_summary_is_over_episodes_not_frames() -> None:
    found = summarise(scores([10, 20], [5, 5]), beyond=4).set_index("system")
    assert found["mean"].to_dict() == {"a": 15, "b": 5}
    assert found.episodes.to_dict() == {"a": 2, "b": 2}
    assert found.low["a"] < 15 < found.high["a"]
    assert found.low["b"] == found.high["b"] == 5


CELLS = {  # (run, system, checkpoint, protocol) → value of two episodes
    ("r1", "ssm", 100, P): (10.0, 12.0),
    ("r1", "ssm", 200, P): (14.0, 17.0),
    ("r1", "ssm/wiped", 200, P): (9.0, 9.5),
    ("r2", "window", 300, P): (12.0, 14.0),
    ("none", "nearest_pose", 0, P): (40.0, 41.0),
}


def fill(
    store: Store,
    cells: dict[tuple[str, str, int, str], tuple[float, float]],
    part: str = "x",
    metric: str = "psnr",
    better: str | None = "higher",
) -> None:
    rows = [
        {"run": run, "system": system, "checkpoint": step, "protocol": protocol, "task": "retrieval", "seed": 0}
        | {"episode": episode, "frame": frame, "distance": 2 * frame + 1, "metric": metric, "value": value - frame}
        | {"better": better}
        for (run, system, step, protocol), values in cells.items()
        for episode, value in enumerate(values)
        for frame in (0, 4)
    ]
    tables.append(store, "scores", rows, part)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path)
    fill(store, CELLS)
    for name, definition in DEFINITIONS.items():
        store.write_bytes(f"protocols/{name}.json", json.dumps(definition).encode())
    return store


def told(*arguments: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        getattr(longtake, arguments[0])(options.pop("store"), *arguments[1:], **options)
    return str(caught.value)


def test_latest_is_each_runs_newest_checkpoint(store: Store) -> None:
    found = longtake.latest(store)
    assert set(zip(found.run, found.checkpoint, strict=True)) == {("r1", 200), ("r2", 300), ("none", 0)}
    assert len(found) == 16
    assert longtake.latest(store, where="checkpoint < 200 and run == 'r1'").checkpoint.unique().tolist() == [100]


def test_best_leaves_out_floors_and_controls_and_goes_by_the_metrics_direction(store: Store) -> None:
    (line,) = longtake.best(store).to_dict("records")
    assert (line["run"], line["checkpoint"], line["mean"], line["episodes"]) == ("r1", 200, 13.5, 2)
    assert longtake.best(store, beyond=5)["mean"].tolist() == [11.5]
    for metric, better, system in (("lpips_vgg", "lower", "ssm"), ("sharpness", "zero", "window")):  # not ssm/wiped
        shifted = {key: (a - 12.0, b - 12.0) if better == "zero" else (a, b) for key, (a, b) in CELLS.items()}
        fill(store, shifted, metric, metric, better)
        assert longtake.best(store, metric).system.tolist() == [system]
    fill(store, CELLS, "z", "older", None)
    assert "older do not say which way is better: evaluate again" in told("best", "older", store=store)


def test_runs_and_systems_are_compared(store: Store) -> None:
    for a, b in (("r1", "r2"), ("ssm", "window")):
        (line,) = longtake.compare(store, a, b).to_dict("records")
        assert (line["a"], line["b"], line["difference"], line["episodes"]) == (13.5, 11.0, 2.5, 2)
        assert line["low"] < 2.5 < line["high"]
    assert longtake.compare(store, "ssm", "ssm/wiped").difference.tolist() == [6.25]


def test_unlike_protocols_are_refused_with_the_fields_that_differ(store: Store) -> None:
    fill(store, {("r3", "other", 400, Q): (30.0, 30.0)}, "y")
    for arguments in (("latest",), ("best",), ("compare", "r1", "r3")):
        line = told(*arguments, store=store)
        assert "retrieval was scored under 2 protocols that cannot be compared" in line
        assert f"context: 48 ({P}), 32 ({Q}); sampler.steps: 6 ({P}), 4 ({Q})" in line
        assert "kind" not in line
    assert longtake.best(store, where=f"protocol == {Q!r}")["mean"].tolist() == [28.0]
    store.remove([f"protocols/{Q}.json"])
    assert f"{Q}: its definition is not in the store" in told("latest", store=store)


def test_of_several_protocols_the_shared_one_is_taken(store: Store) -> None:
    before = longtake.best(store), longtake.compare(store, "r1", "r2")
    fill(store, {("r2", "window", 400, Q): (30.0, 30.0), ("none", "nearest_pose", 0, Q): (20.0, 20.0)}, "y")
    assert set(longtake.latest(store).protocol) == {P}
    pd.testing.assert_frame_equal(longtake.best(store), before[0])
    pd.testing.assert_frame_equal(longtake.compare(store, "r1", "r2"), before[1])
    both = longtake.compare(store, "r2", "nearest_pose").set_index("protocol")
    assert list(both.index) == [P, Q] and both.difference[Q] == 10.0
    fill(store, {("r1", "ssm", 400, Q): (31.0, 31.0)}, "z")
    for verb in ("latest", "best"):
        assert "was scored under 2 protocols" in told(verb, store=store)


def test_what_cannot_be_compared_is_told(store: Store) -> None:
    assert "unknown run or system 'smm' (did you mean ssm?)" in told("compare", "smm", "r2", store=store)
    assert "unknown metric 'psnrr' (did you mean psnr?)" in told("best", "psnrr", store=store)
    fill(store, {("r3", "window", 1, P): (1.0, 1.0)}, "y")
    assert "window stands for 2 runs: r2, r3" in told("compare", "window", "r1", store=store)
    assert "fewer than two episodes" in told("compare", "r1", "r2", store=store, where="episode == 0")
