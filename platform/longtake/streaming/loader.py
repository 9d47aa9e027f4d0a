"""Clips and batches: what a plan names is read, cut into clips, and handed to a rank through Ray Data."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from longtake.cluster.launch import machine_cpus
from longtake.datasets.mixture import Data
from longtake.errors import UserError
from longtake.streaming.clips import (
    DECODERS,
    READERS,
    ClipBatch,
    ClipReader,
    Columns,
    clip_threads,
    empty_columns,
    of_step,
)
from longtake.streaming.plan import Plan, rank_slice

WINDOW = 1024  # steps handed to Ray Data at a time, at most
TASK_BYTES = 2 * 2**30  # what one data task loads, some seconds of work: its readers begin with nothing ahead
BLOCK_BYTES = 32 * 2**20  # of steps that a task hands over at once, if one is not larger: that costs 15 ms of CPU
BLOCK_STEPS = 16  # at once, at most: the first one waits for all of them
BUFFER = 64 * 2**20  # of blocks that a task makes before Ray Data asks for them
MEMORY = 64 * 2**20, 160 * 2**20  # of clips ready in the object store: 16 steps, but for these bounds
PAUSE_S = 0.005, 0.02  # of Ray Data's executor between two rounds: while its consumer waits, and while it does not
READY = 1  # blocks that are made a rank's own ahead; Ray Data holds one more of them
AHEAD = 2  # blocks that are being read while one is worked with


def fail_if_too_many_replaced(
    source: Iterable[tuple[int, ClipBatch]], plan: Plan, world: int, share: float
) -> Iterator[tuple[int, ClipBatch]]:
    """The same batches, until more than `share` of a rank's clips were replaced, or of an epoch's if that is more.

    Raises UserError then: data that damaged is to be made again.
    """
    clips = replaced = 0
    for step, batch in source:
        clips += len(batch.replaced)
        replaced += int((batch.replaced > 0).sum())
        in_epoch = plan.steps_per_epoch * plan.frames_per_step / batch.frames.shape[1] / world
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
    labels: tuple[str, ...] = ()

    def load(self, steps: Iterable[int]) -> Iterator[tuple[list[int], Columns]]:
        """Blocks of these steps, in order, a row for each; the next AHEAD are being read while one is worked with."""
        waiting: deque[tuple[list[int], Columns, list[Future[None]]]] = deque()
        remote = waits = not self.dataset.store.is_folder
        counted = self.dataset.bytes_read
        with clip_threads(min(DECODERS, machine_cpus())) as decoders, clip_threads(READERS) as readers:
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

    def _begin(self, group: list[int], pool: ThreadPoolExecutor) -> tuple[Columns, list[Future[None]]]:
        cuts = [rank_slice(self.plan.batch(step), self.rank, self.world) for step in group]
        rows = empty_columns(self.dataset, cuts[0], len(group), self.labels)
        replace = self.plan.replacement
        shares = [ClipReader(self.dataset, one, replace, of_step(rows, row)) for row, one in enumerate(cuts)]
        return rows, [pool.submit(share.load, place) for share in shares for place in range(len(share.columns["slot"]))]

    def blocks(self, rows: Any) -> Iterator[Columns]:
        """The steps of a Ray Data task, each a row."""
        for group, batch in self.load(rows["step"].tolist()):
            yield {"step": np.array(group), **batch}


def local_batches(
    dataset: Data,
    plan: Plan,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    *,
    labels: tuple[str, ...] = (),
) -> Iterator[tuple[int, ClipBatch]]:
    """(step, batch) for steps [start, stop), read by threads up to AHEAD steps early; no Ray."""
    for (step,), rows in _Loader(dataset, plan, rank, world, labels=labels).load(range(start_step, stop_step)):
        yield step, ClipBatch.of(of_step(rows, 0))


def batches(
    dataset: Data,
    plan: Plan,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    *,
    cpus: float = 0.5,
    labels: tuple[str, ...] = (),
) -> Iterator[tuple[int, ClipBatch]]:
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
    loader = _Loader(dataset, plan, rank, world, together, labels)
    _configure_ray_data(cpus, step_bytes, together)
    for start in range(start_step, stop_step, WINDOW):
        steps = range(start, min(start + WINDOW, stop_step))
        yield from _window(loader, steps, max(1, TASK_BYTES // step_bytes), cpus)


def _window(loader: _Loader, steps: range, per_task: int, cpus: float) -> Iterator[tuple[int, ClipBatch]]:
    """One Ray Data pipeline: a row per step, in order, `per_task` rows loaded by one task."""
    import ray

    rows = [{"step": step} for step in steps]
    tasks = -(-len(rows) // per_task)
    loaded = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        loader.blocks, batch_size=None, batch_format="numpy", num_cpus=cpus, concurrency=1
    )
    expected = iter(steps)
    blocks: Any = loaded.iter_torch_batches(batch_size=None, prefetch_batches=READY, collate_fn=_own(), device="cpu")
    for block in blocks:
        for batch in block:
            step = int(batch.pop("step"))
            if step != next(expected):
                raise RuntimeError(f"Ray Data gave step {step} out of order in {steps}")
            yield step, ClipBatch.of(batch)
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
        def __call__(self, batch: Columns) -> Any:
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
