"""Clips and batches: what a plan names is read, cut into clips, and handed to a rank through Ray Data."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.episodes import CorruptData, Episode
from longtake.errors import UserError
from longtake.mixture import Data
from longtake.plan import GlobalBatch, Plan, cut

log = logging.getLogger(__name__)

Batch = dict[str, NDArray[Any]]
Replace = Callable[[int, int, int], tuple[int, int]]

WINDOW = 512  # steps handed to Ray Data at a time, at most
TASK_BYTES = 4 * 2**20  # what one data task loads: few tasks, since each costs the rank 20 ms of CPU
PAUSE_S = 0.02  # of Ray Data's executor between two rounds
ATTEMPTS = 100  # clips tried in place of one that cannot be read
READERS = 16  # clips of a batch that are read from an object storage at the same time


# --- clips --------------------------------------------------------------------------------------------------


def relative_pose(pose: NDArray[Any]) -> NDArray[np.float32]:
    """(T, 3) of x, y, yaw → (T, 4): dx, dy in the first frame's own axes, cos and sin of the turn since."""
    x, y, yaw = np.asarray(pose, dtype=np.float64).T
    dx, dy, turn = x - x[0], y - y[0], yaw - yaw[0]
    ahead, left = math.cos(yaw[0]), math.sin(yaw[0])
    columns = (dx * ahead + dy * left, dy * ahead - dx * left, np.cos(turn), np.sin(turn))
    return np.stack(columns, axis=1).astype(np.float32)


def load_clips(dataset: Data, batch: GlobalBatch, palindrome: bool = False, replace: Replace | None = None) -> Batch:
    """Read the clips of a batch.

    Returns frames uint8 (B, T, H, W, 3), actions float32 (B, T, stride x A), pose float32 (B, T, 4) where there
    is one, and of each clip episode, start, slot and `replaced` (clips tried before it), int64 (B,); weight
    float64 (1,): this share of the whole batch. A clip's first action is the null action, and so is every
    action on the way back of a palindrome: what was recorded on the way there does not lead back. With a stride, the
    action of a frame is all those that led to it from the frame before, the oldest first.
    `replace(step, slot, attempt)` names the clip to take for a corrupt one; without it CorruptData is
    raised.
    """

    def load(place: tuple[int, int, int]) -> dict[str, Any]:
        return _load(dataset, batch, *place, palindrome, replace)

    places = list(zip(batch.episode.tolist(), batch.start.tolist(), batch.slot.tolist(), strict=True))
    if dataset.store.is_folder:
        clips = list(map(load, places))
    else:  # each waits for an answer, most of the time
        with ThreadPoolExecutor(READERS, thread_name_prefix="clips") as pool:
            clips = list(pool.map(load, places))
    stacked = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    return {**stacked, "weight": np.array([len(clips) / batch.size])}


def _load(
    dataset: Data,
    batch: GlobalBatch,
    episode: int,
    start: int,
    slot: int,
    palindrome: bool,
    replace: Replace | None,
) -> dict[str, Any]:
    """One clip, or the first readable one of those that replace it."""
    for attempt in itertools.count():
        try:
            source = dataset.read(episode, start, start + batch.source)
        except CorruptData as error:
            if replace is None or attempt >= ATTEMPTS:
                raise
            log.warning("step %d, clip %d replaced: %s", batch.step, slot, error)
            episode, start = replace(batch.step, slot, attempt)
        else:
            place = {"episode": episode, "start": start, "slot": slot, "replaced": attempt}
            clip = _clip(source, dataset.action_vectors(source.actions), batch.stride, palindrome)
            return {**clip, **{k: np.int64(v) for k, v in place.items()}}
    raise AssertionError("unreachable")


def _clip(source: Episode, actions: NDArray[np.float32], stride: int, palindrome: bool) -> Batch:
    actions = _stacked(actions, stride)
    clip = {"frames": source.frames[::stride], "actions": actions}
    if source.pose is not None:
        clip["pose"] = relative_pose(source.pose[::stride])
    if not palindrome:
        return clip
    back = {name: array[::-1] for name, array in clip.items()} | {"actions": np.zeros_like(actions)}
    return {name: np.concatenate([array, back[name]]) for name, array in clip.items()}


def _stacked(actions: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """(T x stride, A) → (T, stride x A): what led to every stride-th frame; nothing to the first."""
    frames = len(actions) // stride
    led = np.zeros((frames, stride, actions.shape[1]), np.float32)
    led[1:] = actions[1 : 1 + (frames - 1) * stride].reshape(frames - 1, stride, -1)
    return led.reshape(frames, -1)


# --- batches ------------------------------------------------------------------------------------------------


def few_replaced(
    source: Iterable[tuple[int, Batch]], plan: Plan, world: int, share: float
) -> Iterator[tuple[int, Batch]]:
    """The same batches, until more than `share` of a rank's clips were replaced, or of an epoch's if that is more.

    Raises UserError then: data that damaged is to be made again.
    """
    clips = replaced = 0
    for step, batch in source:
        clips += len(batch["replaced"])
        replaced += int((batch["replaced"] > 0).sum())
        in_epoch = plan.steps_per_epoch * plan.frames_per_step / batch["frames"].shape[1] / world
        if replaced > share * max(clips, in_epoch):
            raise UserError(
                f"step {step}: {replaced} of {clips} clips could not be read and were replaced, more than "
                f"data.max_replaced={share:g} allows: the log names them; see `longtake verify`, make the data again"
            )
        yield step, batch


@dataclass(frozen=True)
class _Loader:
    """Step → its loaded share, with the bytes that this took from the storage; picklable, for a Ray Data task."""

    dataset: Data
    plan: Plan
    rank: int
    world: int

    def load(self, step: int) -> Batch:
        share, before = cut(self.plan.batch(step), self.rank, self.world), self.dataset.bytes_read
        clips = load_clips(self.dataset, share, self.plan.palindrome, self.plan.replacement)
        return {**clips, "bytes_read": np.array([self.dataset.bytes_read - before])}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"step": row["step"], **self.load(int(row["step"]))}


def local_batches(
    dataset: Data, plan: Plan, rank: int, world: int, start_step: int, stop_step: int, ahead: int = 2
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for steps [start, stop), loaded by a thread up to `ahead` steps early; no Ray."""
    loader = _Loader(dataset, plan, rank, world)
    waiting: deque[tuple[int, Future[Batch]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="clips") as pool:
        try:
            for step in range(start_step, stop_step):
                waiting.append((step, pool.submit(loader.load, step)))
                if len(waiting) > ahead:
                    done, batch = waiting.popleft()
                    yield done, batch.result()
            for step, batch in waiting:
                yield step, batch.result()
        finally:
            for _, batch in waiting:
                batch.cancel()


def batches(
    dataset: Data,
    plan: Plan,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    *,
    cpus: float = 0.5,
    memory_mb: int = 64,
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for steps [start, stop) through Ray Data; the same bytes as `local_batches`.

    cpus: of this rank's data tasks. memory_mb: how much they may have ready in the object store.

    Steps go to Ray Data in windows. One that fits into `memory_mb` whole lets its executor finish, and leaves the rank
    alone while the clips are trained on; of a longer one the executor waits, with pauses, for clips to be taken.
    """
    loader = _Loader(dataset, plan, rank, world)
    step_bytes = max(1, plan.frames_per_step * math.prod(dataset.frame_shape) // world)
    per_task = max(1, TASK_BYTES // step_bytes)
    _configure_ray_data(cpus, max(memory_mb * 2**20, 4 * per_task * step_bytes))
    for start in range(start_step, stop_step, WINDOW):
        yield from _window(loader, range(start, min(start + WINDOW, stop_step)), per_task, cpus)


def _window(loader: _Loader, steps: range, per_task: int, cpus: float) -> Iterator[tuple[int, Batch]]:
    """One Ray Data pipeline: a row per step, in order, `per_task` rows loaded by one task."""
    import ray

    rows = [{"step": step} for step in steps]
    tasks = -(-len(rows) // per_task)
    loaded = ray.data.from_items(rows, override_num_blocks=tasks).map(loader, num_cpus=cpus)
    expected = iter(steps)
    for block in loaded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
        for row in range(len(block["step"])):
            # A copy: what Ray hands out is read-only memory of the object store, and would keep the whole block there.
            batch: Batch = {str(name): array[row].copy() for name, array in block.items()}
            step = int(batch.pop("step"))
            if step != next(expected):
                raise RuntimeError(f"Ray Data gave step {step} out of order in {steps}")
            yield step, batch
    if next(expected, None) is not None:
        raise RuntimeError(f"Ray Data lost steps of {steps}")


def _configure_ray_data(cpus: float, memory: int) -> None:
    """Order kept, one data task at a time, quiet. This is the worker's own process, so its context is ours."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 2 * TASK_BYTES
    context.custom_execution_callback_classes = [_breather()]
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=cpus, object_store_memory=max(memory, 64 * 2**20)
    )


@functools.cache
def _breather() -> type[Any]:
    """A callback that pauses Ray Data's executor after each of its rounds.

    While it is held back, by memory or by its consumer, Ray 2.60's executor polls without a pause, in a thread of the
    rank: it took more CPU, and more of the interpreter's lock, than the training itself.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Breather(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(PAUSE_S)

    return Breather
