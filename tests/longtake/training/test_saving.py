"""Checkpoints are written beside the training: it waits for a copy in memory only, and a kill loses nothing older."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.storage import seals
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from longtake.training.context import LocalContext
from longtake.training.engine import Engine
from longtake.training.engine_config import EngineConfig
from tests.longtake.training import toy_loop
from tests.longtake.training.toy_loop import SAVE_EVERY, STEPS, Carried, Toy, backward_all, clip

RUN = "toy"
TOY = Toy(EngineConfig(backend="torch"))
POINTS = {  # each is called once a save
    "while files are written": (torch, "save"),
    "before files are listed": (seals, "entries"),
    "before others are waited for": (checkpoints, "wait_for_writers"),
    "before the seal": (checkpoints, "seal"),
    "after the seal": (checkpoints, "prune"),
}


def weights(store: Store, step: int = STEPS) -> bytes:
    checkpoints.require_whole(store, RUN, step)
    return store.read_bytes(f"{checkpoints.folder(RUN, step)}/model.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    store = open_store(tmp_path_factory.mktemp("straight"))
    toy_loop.loop(LocalContext(store, RUN, device="cpu"), TOY)
    return weights(store)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    store, go_on = open_store(tmp_path), threading.Event()
    context = LocalContext(store, RUN, device="cpu")

    def slow(folder: Path) -> None:
        assert go_on.wait(60)
        (folder / "part").write_bytes(b"1")

    context.save(1, slow)
    context.progress(1, 2)
    assert checkpoints.complete(store, RUN) == []
    go_on.set()
    context.save(2, lambda folder: (folder / "part").write_bytes(b"2"))  # type: ignore[arg-type, return-value]
    assert 1 in checkpoints.complete(store, RUN), "one is in flight at a time"
    context.finish()
    assert checkpoints.read(store, RUN, 2, "part") == b"2"


def test_what_is_written_is_what_was_when_it_was_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    engine = Engine(Carried(), TOY.engine, steps=STEPS)
    for step in range(2):
        backward_all(engine, clip(step, 0), 2)
        engine.step()
    engine.save(tmp_path / "now", {"step": 2})
    write = engine.snapshot({"step": 2})
    backward_all(engine, clip(2, 0), 2)
    engine.step()
    write(tmp_path / "later")
    names = sorted(path.name for path in (tmp_path / "now").iterdir())
    assert names == ["model.safetensors", "optimizer.pt", "rng-00000.json", "state.json"]
    for name in names:
        assert (tmp_path / "now" / name).read_bytes() == (tmp_path / "later" / name).read_bytes(), name


def test_what_goes_wrong_is_told_at_the_next_step(tmp_path: Path) -> None:
    context = LocalContext(open_store(tmp_path), RUN, device="cpu")

    def fails(folder: Path) -> None:
        raise ValueError("no good")

    context.save(1, fails)
    with pytest.raises(ValueError, match="no good"):
        context.finish()
    context.save(2, fails)
    context._saving._thread.join()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no good"):
        context.progress(2, 3)
    context.finish()
    assert checkpoints.complete(context.store, RUN) == []


@pytest.mark.parametrize("step", [SAVE_EVERY, 2 * SAVE_EVERY])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_during_a_save_loses_nothing_older(tmp_path: Path, straight: bytes, point: str, step: int) -> None:
    """Ten kills: at each the run goes on from the newest whole checkpoint and ends bitwise as the undisturbed one."""
    store = open_store(tmp_path)
    child = os.fork()
    if not child:
        _die(store, *POINTS[point], step)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    done = step if point == "after the seal" else step - SAVE_EVERY
    assert checkpoints.complete(store, RUN)[-1:] == ([done] if done else [])
    context = LocalContext(store, RUN, device="cpu")
    with context.resume() as folder:
        assert (0 if folder is None else checkpoints.step_in(folder)) == done
    toy_loop.loop(context, TOY)
    assert weights(store) == straight


def _die(store: Store, module: Any, name: str, step: int) -> None:
    """Train, and be killed where the save of `step` calls a function."""
    real, calls = getattr(module, name), itertools.count(1)

    def killed(*arguments: Any, **options: Any) -> Any:
        if next(calls) * SAVE_EVERY == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(module, name, killed)
    try:
        toy_loop.loop(LocalContext(store, RUN, device="cpu"), TOY)
    finally:
        os._exit(1)
