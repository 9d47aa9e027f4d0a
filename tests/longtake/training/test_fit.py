"""A training that is killed anywhere ends with the very weights of one that is not."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from longtake.cluster.demand import Demand
from longtake.cluster.launch import launch
from longtake.errors import UserError
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints, worker_errors
from longtake.training import context as training_context
from longtake.training import fit as training
from longtake.training.engine_config import EngineConfig
from longtake.training.progress_file import Progress
from tests.longtake.training import toy_loop
from tests.longtake.training.toy_loop import STEPS, Toy

ROOT = Path(__file__).parents[3]
# Workers import the toy loop, which no wheel or editable install contains.
PATHS = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH")]))
RUN = "toy"


def weights(store: Store) -> bytes:
    return store.read_bytes(f"{checkpoints.folder(RUN, STEPS)}/model.safetensors")


# --- this process ------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def fit_alone(store: Store, on_progress: training_context.OnProgress | None = None, fail_step: int = -1) -> None:
    toy = Toy(EngineConfig(backend="torch"), fail_step=fail_step)
    training.fit(toy_loop.loop, toy, store=store, run_id=RUN, workers=0, on_progress=on_progress)


def test_alone_goes_on_where_it_failed(alone: None, tmp_path: Path) -> None:
    straight, broken = open_store(tmp_path / "straight"), open_store(tmp_path / "broken")
    fit_alone(straight)
    with pytest.raises(ValueError, match="step 6"):
        fit_alone(broken, fail_step=6)
    assert checkpoints.complete(broken, RUN) == [4]
    told: list[Progress] = []
    fit_alone(broken, told.append)
    assert [progress.step for progress in told] == list(range(5, STEPS + 1))
    assert weights(broken) == weights(straight)
    assert checkpoints.complete(broken, RUN) == [8, 12]


def test_a_finished_run_is_left_alone(alone: None, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fit_alone(store)
    before = checkpoints.manifest(store, RUN, STEPS)
    told: list[Progress] = []
    fit_alone(store, told.append)
    assert told == []
    assert checkpoints.manifest(store, RUN, STEPS) == before


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(alone: None, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        if progress.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may be longer: torch.save fails

    try:
        with pytest.raises(UserError, match=r"step 8 could not be written: .*; that of step 4 is whole: .* --resume"):
            fit_alone(store, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in Path(store.path("runs", RUN, "checkpoints")).iterdir()] == ["step-000004"]
    fit_alone(store)
    assert checkpoints.newest(store, RUN) == STEPS


def rot(store: Store, step: int) -> str:
    """Zeros in the weights of a checkpoint; the file's name."""
    name = f"{checkpoints.folder(RUN, step)}/model.safetensors"
    data = store.read_bytes(name)
    Path(store.path(name)).write_bytes(data[:-64] + bytes(64))
    return name


def test_a_rotten_checkpoint_is_named_and_the_one_before_gone_on_from(
    alone: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, broken = open_store(tmp_path / "straight"), open_store(tmp_path / "broken")
    fit_alone(straight)
    with pytest.raises(ValueError, match="step 10"):
        fit_alone(broken, fail_step=10)
    name = rot(broken, 8)
    told: list[Progress] = []
    fit_alone(broken, told.append)
    assert [progress.step for progress in told] == list(range(5, STEPS + 1))
    assert f"{name}: damaged, its SHA-256" in caplog.text
    assert weights(broken) == weights(straight)
    for step in (8, STEPS):  # the damaged one was written again
        checkpoints.require_whole(broken, RUN, step)


def test_a_run_whose_checkpoints_are_all_damaged_or_gone_stops(alone: None, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fit_alone(store)
    names = [rot(store, step) for step in (8, STEPS)]
    with pytest.raises(UserError, match="its record says that step 12 was saved") as caught:
        fit_alone(store)
    assert all(any(line.startswith(name) for line in caught.value.lines) for name in names)
    assert checkpoints.complete(store, RUN) == [8, STEPS]
    shutil.rmtree(store.path("runs", RUN, "checkpoints"))
    with pytest.raises(UserError, match="its record says that step 12 was saved"):
        fit_alone(store)


def saved(store: Store) -> list[str]:
    """All files but those that say who holds the run."""
    return [name for name in store.find() if "/lease/" not in name]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("where", ["checkpoints", "step-000008"])
def test_a_listing_that_fails_deletes_nothing(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="step 10"):
        fit_alone(store, fail_step=10)
    before, real, left = saved(store), os.scandir, [1]

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith(f"/{where}") and left:
            left.clear()
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=f"{where} cannot be read"):
        fit_alone(store)
    monkeypatch.undo()
    assert saved(store) == before
    told: list[Progress] = []
    fit_alone(store, told.append)
    assert told[0].step == 9


def test_mean_of_one_is_itself(tmp_path: Path) -> None:
    context = training_context.LocalContext(open_store(tmp_path), RUN, device="cpu")
    assert context.mean(loss=0.5, norm=2.0) == {"loss": 0.5, "norm": 2.0}


def test_too_many_workers_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"900 workers x .* = 900 CPUs"):
        training.fit(toy_loop.loop, Toy(EngineConfig()), store=open_store(tmp_path), run_id=RUN, workers=900)


def test_a_worker_that_was_killed_for_want_of_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError

    def told(error: Exception, killed_by_kernel: int) -> str:
        monkeypatch.setattr(training, "kernel_kills", lambda: 3 + killed_by_kernel)
        with pytest.raises(UserError) as caught:
            training._explain(WorkerGroupError("", {0: ValueError(), 1: error}), open_store(tmp_path), RUN, 2, kills=3)
        return str(caught.value)

    assert "run toy: worker 1 was killed because its machine ran out of memory" in told(OutOfMemoryError("x"), 0)
    assert "run toy: a worker, it seems, was killed because this machine ran out" in told(ValueError(), 1)
    assert "a worker died (killed, or its node went away) more often than the 2 times" in told(ValueError(), 0)
    assert worker_errors.kernel_kills() >= 0


# --- Ray ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One local Ray for this module, whose workers can import the toy loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        patch.delenv("RAY_ADDRESS", raising=False)
        with launch(Demand(2), cpus=4):
            yield


@pytest.fixture(scope="module")
def undisturbed(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(tmp_path_factory.mktemp("undisturbed"))
    fit_on_ray(store)
    return store


def fit_on_ray(store: Store, toy: Toy | None = None, max_failures: int = 1) -> list[Progress]:
    told: list[Progress] = []
    training.fit(
        toy_loop.loop,
        toy or Toy(EngineConfig(zero=1)),
        store=store,
        run_id=RUN,
        workers=2,
        max_failures=max_failures,
        on_progress=told.append,
    )
    return told


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(120)
def test_a_killed_worker_changes_nothing(undisturbed: Store, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    toy = Toy(EngineConfig(zero=1), kill_step=6, kill_rank=1, flag=str(tmp_path / "killed"))
    told = fit_on_ray(store, toy)
    assert (tmp_path / "killed").exists()
    assert (told[-1].step, told[-1].of, told[-1].restarts) == (STEPS, STEPS, 1)
    assert weights(store) == weights(undisturbed)
    assert not store.exists(f"runs/{RUN}/ray")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_an_error_of_the_loop_ends_the_run_at_once(ray_here: None, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="toy failure at step 6") as failed:
        fit_on_ray(store, Toy(EngineConfig(backend="torch"), fail_step=6), max_failures=3)
    assert "in _trouble" in failed.value.__notes__[0]  # the worker's own traceback
    assert checkpoints.complete(store, RUN) == [4]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.drill
@pytest.mark.timeout(150)
def test_a_killed_driver_leaves_no_process_and_is_replaced(undisturbed: Store, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    mark = uuid.uuid4().hex
    code = f"from tests.longtake.training.toy_loop import drive; drive({str(tmp_path / 'store')!r}, {RUN!r})"
    driver = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "LONGTAKE_TEST": mark, "PYTHONPATH": PATHS}
    )
    try:
        assert wait_for(lambda: checkpoints.complete(store, RUN) != [], 60), "no checkpoint came"
    finally:
        driver.kill()
        driver.wait()
    assert wait_for(lambda: not marked_processes(mark), 30), f"orphans: {marked_processes(mark)}"
    assert checkpoints.newest(store, RUN) in (4, 8)
    told = fit_on_ray(store)
    assert told[-1].restarts == 0
    assert weights(store) == weights(undisturbed)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return condition()


def marked_processes(mark: str) -> list[str]:
    """Processes that inherited the mark, by their environment: workers rewrite their own command line.

    Without Ray's two agents: they end by themselves, but may first try to reach the dead server for a minute.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes().strip(b"\0").decode()
            if mark.encode() in (process / "environ").read_bytes() and not name.endswith("Agent"):
                found.append(f"{process.name} {name[:80]}")
        except OSError:
            continue  # it has just ended, or is not ours
    return found
