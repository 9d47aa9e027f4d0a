"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake import checkpoints
from longtake.store import Store, open_store

RUN = "a-run"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def write(store: Store, step: int, *, sealed: bool = True) -> Path:
    with checkpoints.writing(store, RUN, step) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(bytes(100))
        (folder / "state").write_bytes(bytes(10))
    if sealed:
        checkpoints.seal(store, RUN, step, world=2, metrics={"loss": 0.5})
    return Path(store.path(checkpoints.folder(RUN, step)))


def test_none_without_a_run(store: Store) -> None:
    assert checkpoints.complete(store, RUN) == []
    assert checkpoints.newest(store, RUN) is None


def test_seen_once_sealed(store: Store) -> None:
    write(store, 8)
    write(store, 200, sealed=False)
    write(store, 16)
    assert checkpoints.complete(store, RUN) == [8, 16]
    assert checkpoints.newest(store, RUN) == 16


def test_manifest_tells_what_there_is(store: Store) -> None:
    write(store, 8)
    told = checkpoints.manifest(store, RUN, 8)
    assert (told["step"], told["world"], told["metrics"]) == (8, 2, {"loss": 0.5})
    assert told["files"] == {"deep/weights": 100, "state": 10}
    with checkpoints.opened(store, RUN, 8) as folder:
        assert (folder / "deep" / "weights").read_bytes() == bytes(100)


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_a_damaged_one_is_named_and_passed_over(store: Store, harm: str) -> None:
    write(store, 8)
    weights = write(store, 16) / "deep" / "weights"
    os.truncate(weights, 60) if harm == "truncate" else weights.unlink()
    assert checkpoints.newest(store, RUN) == 8
    (line,) = checkpoints.damage(store, RUN, 16)
    assert line.startswith("runs/a-run/checkpoints/step-000016/deep/weights: ")
    assert line.endswith("100 were written")


def test_prune_keeps_the_newest(store: Store) -> None:
    for step in (4, 8, 12):
        write(store, step)
    checkpoints.prune(store, RUN, keep=2)
    assert checkpoints.complete(store, RUN) == [8, 12]
    assert not Path(store.path(checkpoints.folder(RUN, 4))).exists()


def test_prune_also_keeps_the_best(store: Store) -> None:
    for step, loss in ((4, 0.5), (8, 0.3), (12, 0.6), (16, None), (20, float("nan"))):
        write(store, step, sealed=False)
        checkpoints.seal(store, RUN, step, world=1, metrics={} if loss is None else {"val_loss": loss})
    assert checkpoints.best(store, RUN, "val_loss") == 8
    checkpoints.prune(store, RUN, keep=1, metric="val_loss")
    assert checkpoints.complete(store, RUN) == [8, 20]


def test_discard_leaves_only_what_can_be_resumed(store: Store) -> None:
    write(store, 4, sealed=False)
    write(store, 8)
    os.truncate(write(store, 12) / "state", 1)
    write(store, 16, sealed=False)
    checkpoints.discard_unfinished(store, RUN)
    left = sorted(path.name for path in Path(store.path("runs", RUN, "checkpoints")).iterdir())
    assert left == ["step-000008", "step-000012"]  # what was sealed `prune` alone deletes
