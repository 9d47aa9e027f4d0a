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

from longtake.cluster.launch import machine_cpus
from longtake.datasets.dataset import CorruptData
from longtake.datasets.mixture import Data
from longtake.errors import UserError
from longtake.streaming.plan import GlobalBatch, Ints, Plan, cut

log = logging.getLogger(__name__)

Batch = dict[str, NDArray[Any]]
Replace = Callable[[int, int, int], tuple[int, int]]

WINDOW = 1024  # steps handed to Ray Data at a time, at most
TASK_BYTES = 2 * 2**30  # what one data task loads, some seconds of work: its readers begin with nothing ahead
BLOCK_BYTES = 32 * 2**20  # of steps that a task hands over at once, if one is not larger: that costs 15 ms of CPU
BLOCK_STEPS = 16  # at once, at most: the first one waits for all of them
BUFFER = 64 * 2**20  # of blocks that a task makes before Ray Data asks for them
MEMORY = 64 * 2**20, 160 * 2**20  # of clips ready in the object store: 16 steps, but for these bounds
PAUSE_S = 0.005, 0.02  # of Ray Data's executor between two rounds: while its consumer waits, and while it does not
ATTEMPTS = 100  # clips tried in place of one that cannot be read
READERS = 16  # clips that are read from an object storage at the same time
DECODERS = 8  # clips that are decoded at the same time, where there are as many CPUs
READY = 1  # blocks that are made a rank's own ahead; Ray Data holds one more of them
AHEAD = 2  # blocks that are being read while one is worked with


# --- clips --------------------------------------------------------------------------------------------------


def relative_pose(pose: NDArray[Any]) -> NDArray[np.float32]:
    """(T, 3) of x, y, yaw → (T, 4): dx, dy in the first frame's own axes, cos and sin of the turn since."""
    x, y, yaw = np.asarray(pose, dtype=np.float64).T
    dx, dy, turn = x - x[0], y - y[0], yaw - yaw[0]
    ahead, left = math.cos(yaw[0]), math.sin(yaw[0])
    columns = (dx * ahead + dy * left, dy * ahead - dx * left, np.cos(turn), np.sin(turn))
    return np.stack(columns, axis=1).astype(np.float32)


def load_clips(dataset: Data, batch: GlobalBatch, replace: Replace | None = None) -> Batch:
    """Read the clips of a batch.

    Returns frames uint8 (B, T, H, W, 3), actions float32 (B, T, stride x A), pose float32 (B, T, 4) where there
    is one, and of each clip episode, start, slot and `replaced` (clips tried before it), int64 (B,); weight
    float64 (1,): this share of the whole batch. A clip's first action is the null action, and so is that of every
    frame that does not follow in the recording the one before it, as in a clip that walks back or jumps: what was
    recorded there does not lead here. With a stride, the action of a frame is all those that led to it from the frame
    before, the oldest first.
    `replace(step, slot, attempt)` names the clip to take for a corrupt one; without it CorruptData is
    raised.
    """
    share = _Share(dataset, batch, replace, _of_step(_room(dataset, batch, 1), 0))
    places = range(len(batch.slot))
    if dataset.store.is_folder:
        for place in places:
            share.load(place)
    else:  # each waits for an answer, most of the time
        with _threads(READERS) as readers:
            list(readers.map(share.load, places))
    return share.clips


def _threads(number: int) -> ThreadPoolExecutor:
    """They read and decode clips: both leave the interpreter's lock to others most of the time."""
    return ThreadPoolExecutor(number, thread_name_prefix="clips")


class _Share:
    """The clips of a batch, each read into its place."""

    def __init__(self, dataset: Data, batch: GlobalBatch, replace: Replace | None, room: Batch) -> None:
        self._dataset, self._batch, self._replace = dataset, batch, replace
        self.clips = room

    def load(self, place: int) -> None:
        """One clip, or the first readable one of those that replace it."""
        batch, clip = self._batch, {name: array[place] for name, array in self.clips.items() if name != "weight"}
        episode, start, slot = (int(array[place]) for array in (batch.episode, batch.start, batch.slot))
        for attempt in itertools.count():
            try:
                self._fill(clip, episode, start, batch.order[place])
            except CorruptData as error:
                if self._replace is None or attempt >= ATTEMPTS:
                    raise
                log.warning("step %d, clip %d replaced: %s", batch.step, slot, error)
                episode, start = self._replace(batch.step, slot, attempt)
            else:
                for name, number in (("episode", episode), ("start", start), ("slot", slot), ("replaced", attempt)):
                    self.clips[name][place] = number
                return

    def _fill(self, clip: Batch, episode: int, start: int, order: Ints) -> None:
        stride, seen = self._batch.stride, int(order.max()) + 1
        there, visits = slice(seen), order[seen:]
        into = clip["frames"][there] if stride == 1 else None
        source = self._dataset.read(episode, start, start + seen * stride, into=into)
        if into is None:
            clip["frames"][there] = source.frames[::stride]
        clip["actions"][there] = _stacked(self._dataset.action_vectors(source.actions), stride)
        if source.pose is not None:
            clip["pose"][there] = relative_pose(source.pose[::stride])
        for name in clip.keys() & {"frames", "actions", "pose"}:
            clip[name][seen:] = clip[name][visits]
        clip["actions"][1:][np.diff(order) != 1] = 0


def _room(dataset: Data, batch: GlobalBatch, steps: int) -> Batch:
    """Room for the clips of so many batches like this one, a row for each."""
    clips, frames = len(batch.slot), batch.frames
    room: Batch = {
        "frames": np.empty((steps, clips, frames, *dataset.frame_shape), dataset.frame_dtype),
        "actions": np.empty((steps, clips, frames, batch.stride * dataset.action_dim), np.float32),
    }
    if dataset.has_pose:
        room["pose"] = np.empty((steps, clips, frames, 4), np.float32)
    numbers = {name: np.empty((steps, clips), np.int64) for name in ("episode", "start", "slot", "replaced")}
    return {**room, **numbers, "weight": np.full((steps, 1), clips / batch.size)}


def _of_step(rows: Batch, row: int) -> Batch:
    return {name: array[row] for name, array in rows.items()}


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
    """Steps → their loaded shares, up to `together` at once, picklable, for a Ray Data task.

    bytes_read of a batch: asked of the storage since the one before was whole, so partly for those after it.
    """

    dataset: Data
    plan: Plan
    rank: int
    world: int
    together: int = 1

    def load(self, steps: Iterable[int]) -> Iterator[tuple[list[int], Batch]]:
        """Blocks of these steps, in order, a row for each; the next AHEAD are being read while one is worked with."""
        waiting: deque[tuple[list[int], Batch, list[Future[None]]]] = deque()
        remote = waits = not self.dataset.store.is_folder
        counted = self.dataset.bytes_read
        with _threads(min(DECODERS, machine_cpus())) as decoders, _threads(READERS) as readers:
            try:
                for group in itertools.chain(self._groups(steps), itertools.repeat(None, AHEAD)):
                    if group is not None:
                        waiting.append((group, *self._begin(group, readers if waits else decoders)))
                    if waiting and (group is None or len(waiting) > AHEAD):
                        done, rows, clips = waiting[0]
                        for clip in clips:
                            clip.result()  # if it raises, those behind it are cancelled below
                        waiting.popleft()
                        before, counted = counted, self.dataset.bytes_read
                        # Many threads only stand in each other's way where all is on the local disk.
                        waits = remote and counted > before
                        shares = np.diff(np.linspace(before, counted, len(done) + 1).astype(np.int64))
                        yield done, {**rows, "bytes_read": shares[:, None]}
            finally:
                for _, _, clips in waiting:
                    for clip in clips:
                        clip.cancel()

    def _groups(self, steps: Iterable[int]) -> Iterator[list[int]]:
        """Steps whose clips have the same length, so that they fit one array."""
        for _, alike in itertools.groupby(steps, self.plan.frames_at):
            while group := list(itertools.islice(alike, self.together)):
                yield group

    def _begin(self, group: list[int], pool: ThreadPoolExecutor) -> tuple[Batch, list[Future[None]]]:
        cuts = [cut(self.plan.batch(step), self.rank, self.world) for step in group]
        rows = _room(self.dataset, cuts[0], len(group))
        replace = self.plan.replacement
        shares = [_Share(self.dataset, one, replace, _of_step(rows, row)) for row, one in enumerate(cuts)]
        return rows, [pool.submit(share.load, place) for share in shares for place in range(len(share.clips["slot"]))]

    def blocks(self, rows: Any) -> Iterator[Batch]:
        """The steps of a Ray Data task, each a row."""
        for group, batch in self.load(rows["step"].tolist()):
            yield {"step": np.array(group), **batch}


def local_batches(
    dataset: Data, plan: Plan, rank: int, world: int, start_step: int, stop_step: int
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for steps [start, stop), read by threads up to AHEAD steps early; no Ray."""
    for (step,), rows in _Loader(dataset, plan, rank, world).load(range(start_step, stop_step)):
        yield step, _of_step(rows, 0)


def batches(
    dataset: Data,
    plan: Plan,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    *,
    cpus: float = 0.5,
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for steps [start, stop) through Ray Data; the same bytes as `local_batches`.

    cpus: that Ray sets aside for this rank's data task; 0 for a rank that holds those of its task too.

    Steps go to Ray Data in windows, and there to tasks that read many one after another, with threads: a task costs
    the rank 20 ms of CPU, and what it gives comes in order. Ray Data holds a task back while enough steps are ready.
    A window that is small enough is ready whole: the executor ends, and leaves the rank alone while it trains.
    """
    step_bytes = max(
        1, plan.frames_per_step * math.prod(dataset.frame_shape) * np.dtype(dataset.frame_dtype).itemsize // world
    )
    together = max(1, min(BLOCK_BYTES // step_bytes, BLOCK_STEPS))
    loader = _Loader(dataset, plan, rank, world, together)
    _configure_ray_data(cpus, step_bytes, together)
    for start in range(start_step, stop_step, WINDOW):
        steps = range(start, min(start + WINDOW, stop_step))
        yield from _window(loader, steps, max(1, TASK_BYTES // step_bytes), cpus)


def _window(loader: _Loader, steps: range, per_task: int, cpus: float) -> Iterator[tuple[int, Batch]]:
    """One Ray Data pipeline: a row per step, in order, `per_task` rows loaded by one task."""
    import ray

    rows = [{"step": step} for step in steps]
    tasks = -(-len(rows) // per_task)
    loaded = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        loader.blocks, batch_size=None, batch_format="numpy", num_cpus=cpus, concurrency=1
    )
    expected = iter(steps)
    made: Any = loaded.iter_torch_batches(batch_size=None, prefetch_batches=READY, collate_fn=_own(), device="cpu")
    for block in made:
        for batch in block:
            step = int(batch.pop("step"))
            if step != next(expected):
                raise RuntimeError(f"Ray Data gave step {step} out of order in {steps}")
            yield step, batch
    if next(expected, None) is not None:
        raise RuntimeError(f"Ray Data lost steps of {steps}")


def _configure_ray_data(cpus: float, step_bytes: int, together: int) -> None:
    """Order kept, one data task at a time, quiet. This is the worker's own process, so its context is ours."""
    import ray.data

    least, most = MEMORY
    memory = max(least, min(16 * step_bytes, most), 4 * step_bytes)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = together * step_bytes
    context._max_num_blocks_in_streaming_gen_buffer = max(2, min(6, BUFFER // (together * step_bytes)))
    context.memory_usage_poll_interval_s = None
    context.custom_execution_callback_classes = [_breather()]
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus, object_store_memory=memory)


@functools.cache
def _own() -> Any:
    """Makes a block the rank's own batches, in a thread of Ray Data's while the rank trains.

    Copies: what Ray hands out is read-only memory of the object store, and would keep the whole block there.
    """
    from ray.data.collate_fn import NumpyBatchCollateFn

    class Own(NumpyBatchCollateFn):
        def __call__(self, batch: Batch) -> Any:
            return [{name: array[row].copy() for name, array in batch.items()} for row in range(len(batch["step"]))]

    return Own()


@functools.cache
def _breather() -> type[Any]:
    """A callback that pauses Ray Data's executor after each of its rounds.

    While it is held back, by memory or by its consumer, Ray 2.60's executor polls without a pause, in a thread of the
    rank: it took more CPU, and more of the interpreter's lock, than the training itself.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Breather(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            waited_for, held_back = PAUSE_S
            time.sleep(waited_for if executor._consumer_idling() else held_back)

    return Breather
