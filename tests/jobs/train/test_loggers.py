"""Numbers of steps shown elsewhere, and pictures of what the model makes."""

from __future__ import annotations

import io
import struct
import sys
import types
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from longtake.config import load
from longtake.errors import UserError
from longtake.jobs.bench.train import written
from longtake.jobs.train import command as train
from longtake.jobs.train import watch
from longtake.jobs.train.config import WorldModelTraining
from longtake.jobs.train.loop import train_loop
from longtake.storage.store import Store, open_store
from longtake.training.context import LocalContext
from tests.jobs.train.toy import TOY


def config_of(folder: Path, *overrides: str) -> tuple[Store, WorldModelTraining]:
    store = open_store(folder / "store")
    written(store, "mazes", edge=16, frames=16)
    (folder / "toy.yaml").write_text(TOY)
    return store, load(WorldModelTraining, folder / "toy.yaml", list(overrides), search=train.CONFIGS)


def told(folder: Path) -> dict[tuple[str, int], float]:
    """Scalars of TensorBoard's event files, by name and step."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
            at += 12 + size + 4
    return found


def test_tensorboard_is_told_what_the_table_holds_and_pictures_are_drawn(tmp_path: Path) -> None:
    store, config = config_of(tmp_path, "watch=[tensorboard]", "samples={every: 3, frames: 3}")
    train_loop(LocalContext(store, "watched", device="cpu"), config)
    seen = told(Path(store.path("runs/watched/watch/tensorboard")))
    rows = store.table("steps", where="run == 'watched'").set_index("step")
    for column in ("loss", "val_loss", "frames_per_s", "grad_norm"):
        assert {step: pytest.approx(value, rel=1e-6) for (name, step), value in seen.items() if name == column} == (
            rows[column].dropna().to_dict()
        )
    assert store.list("runs/watched/samples") == [f"runs/watched/samples/step-{n:06d}.png" for n in (3, 6)]
    drawn = matplotlib.image.imread(io.BytesIO(store.read_bytes("runs/watched/samples/step-000006.png")))
    assert drawn.shape[:2] == (2 * (16 + 2), 3 * (16 + 2))
    assert not (drawn[2:18] == drawn[20:]).all()  # the truth, and what was made


def test_the_others_are_told_by_their_own_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    asked: dict[str, Any] = {}

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            logged.append((step, numbers))

        def finish(self) -> None:
            logged.append((-1, {}))

    fake = types.ModuleType("wandb")
    fake.init = lambda **options: asked.update(options) or Run()  # type: ignore[attr-defined]
    fake.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    loggers = watch.MetricLoggers(["wandb"], open_store(tmp_path), "one", {"name": "maze"})
    loggers.add(4, {"loss": 0.5, "val_loss": float("nan"), "run": "one"})
    loggers.flush()
    loggers.close()
    assert logged == [(4, {"loss": 0.5}), (-1, {})]
    assert (asked["id"], asked["mode"], asked["resume"], asked["name"]) == ("one", "offline", "allow", "maze")
    assert Path(asked["dir"]) == tmp_path / "runs/one/watch/wandb"


def test_a_watcher_that_cannot_be_had_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    store, config = config_of(tmp_path, "watch=[wandb]")
    with pytest.raises(UserError, match=r"watch: wandb is not installed: pip install 'longtake\[wandb\]'"):
        train.check(config, store)
    with pytest.raises(UserError, match="watch"):
        load(WorldModelTraining, tmp_path / "toy.yaml", ["watch=[tensorbord]"], search=train.CONFIGS)
