"""A checkpoint runs no code, whatever lies in its files: of each kind of engine, read by as many ranks or by others."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from longtake.errors import UserError
from longtake.storage.no_code import FORCE, NEVER, only_values
from longtake.training.engine import Engine
from tests.longtake.training.test_engine import ENGINES, config
from tests.longtake.training.toy_loop import Carried, backward_all, clip

KINDS = [*ENGINES, "zero3 offload", "zero2 bf16", "zero3 bf16", "torch autocast"]


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def as_torch_saves(evil: Runs, path: Path) -> None:
    torch.save({"evil": evil}, path)


def as_torch_saved_once(evil: Runs, path: Path) -> None:
    torch.save({"evil": evil}, path, _use_new_zipfile_serialization=False)


def as_a_bare_pickle(evil: Runs, path: Path) -> None:
    path.write_bytes(pickle.dumps(evil))


def among_the_rest(evil: Runs, path: Path) -> None:
    """Everything is as it was, and one value more."""
    held = torch.load(path, weights_only=False) if path.suffix == ".pt" else {}  # of ours
    torch.save({**held, "evil": evil}, path)


WAYS = [as_torch_saves, as_torch_saved_once, as_a_bare_pickle, among_the_rest]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", KINDS)
def test_no_file_of_a_checkpoint_runs_anything(alone: None, tmp_path: Path, name: str) -> None:
    engine = Engine(Carried(), config(name), steps=5)
    backward_all(engine, clip(0, 0), 2)
    engine.step()
    written, mark = tmp_path / "written", tmp_path / "ran"
    engine.save(written, {"step": 1})
    files = sorted(path for path in written.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".json", ".pt", ".safetensors"}
    worlds = [1, 2] if name.startswith(("zero1", "zero2", "zero3")) else [1]
    again = Engine(Carried(), config(name), steps=5)
    refused: set[str] = set()
    for path in files:
        whole = path.read_bytes()
        for make in WAYS:
            path.write_bytes(whole)
            make(Runs(mark), path)
            for world in worlds:
                with of_world(written, world), contextlib.suppress(Exception):
                    try:
                        again.load(written)
                    except UserError as error:
                        assert "not read" in str(error) and len(error.lines) == 1
                        refused.add(path.name)
                        raise
                assert not mark.exists(), (path.name, make.__name__, world)
        path.write_bytes(whole)
    assert any(name.endswith(".pt") for name in refused)
    assert Engine(Carried(), config(name), steps=5).load(written) == {"step": 1}
    assert not mark.exists()
    os.system(f"touch {mark}")
    assert mark.exists()  # the mark would be seen


@contextlib.contextmanager
def of_world(folder: Path, world: int) -> Iterator[None]:
    """The folder as if so many ranks had written it: DeepSpeed converts what others wrote."""
    state = folder / "state.json"
    whole = state.read_bytes()
    with contextlib.suppress(ValueError):
        told = json.loads(whole)
        told["engine"]["world"] = world
        state.write_text(json.dumps(told))
    try:
        yield
    finally:
        state.write_bytes(whole)


@pytest.mark.parametrize("make", WAYS[:3])
def test_torch_load_builds_values_only_whoever_calls_it(
    tmp_path: Path, make: Callable[[Runs, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NEVER, "1")
    make(Runs(tmp_path / "ran"), tmp_path / "file.pt")
    with pytest.raises(UserError, match="could run code and was not read"), only_values(tmp_path, []):
        torch.load(tmp_path / "file.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert FORCE not in os.environ and os.environ[NEVER] == "1"
