"""Plan → clips → batches: which frames every step of a training sees, as a pure function of the step.

Words: a *clip* of T frames is made of S *source frames*, S = T, or T/2 in a palindrome (forward, then the
same reversed). A *segment* is `base_segment` source frames at a fixed place of an episode; a *unit* is the
shortest run of segments that every stage cuts evenly. An epoch is a permutation of all units; laid end to end
they are one long line of source frames, of which step s owns the same number as every other: so the step is
the only position there is. Resume is arithmetic, another number of workers cuts the same batch differently,
and a stage of the clip-length curriculum moves nothing.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtake.episodes import CorruptData, Dataset, Episode
from longtake.errors import UserError

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Batch = dict[str, NDArray[Any]]
Stage = tuple[int | None, int]
Replace = Callable[[int, int, int], tuple[int, int]]

WINDOW = 512  # steps handed to Ray Data at a time, at most
TASK_BYTES = 4 * 2**20  # what one data task loads: few tasks, since each costs the rank 20 ms of CPU
PAUSE_S = 0.02  # of Ray Data's executor between two rounds
ATTEMPTS = 100  # clips tried in place of one that cannot be read


@dataclass(frozen=True)
class GlobalBatch:
    """Clips of `frames` frames (from `source` source frames) at frame start[i] of episode[i].

    slot[i] is a clip's place in the whole batch of `size` clips.
    """

    step: int
    frames: int
    source: int
    size: int
    episode: Ints
    start: Ints
    slot: Ints


@dataclass(frozen=True, eq=False)
class Plan:
    """The whole training as arithmetic.

    lengths: frames of each episode. numbers: their numbers in the dataset (default: 0, 1, ...).
    stages: (until this step, frames T of a clip); the last one until None.
    frames_per_step: clips x T, the same in every stage. Frames at an episode's end that fill no
        whole unit are unused.
    Raises UserError with every problem.
    """

    lengths: Ints
    stages: Sequence[Stage]
    frames_per_step: int
    base_segment: int
    seed: int
    palindrome: bool = False
    numbers: Ints | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        split: str,
        *,
        stages: Sequence[Stage],
        frames_per_step: int,
        base_segment: int,
        seed: int,
        palindrome: bool = False,
    ) -> Plan:
        """The plan over one split of a dataset."""
        chosen = dataset.episodes(split)
        lengths, numbers = chosen["length"].to_numpy(np.int64), chosen["episode"].to_numpy(np.int64)
        return cls(lengths, tuple(stages), frames_per_step, base_segment, seed, palindrome, numbers)

    def __post_init__(self) -> None:
        problems = [*self._stage_problems(), *self._length_problems()]
        if not problems and not self.units:
            problems = [
                f"no episode is long enough: a unit is {self.unit} frames (the least common multiple of "
                f"base_segment={self.base_segment} and the clips), the longest episode has "
                f"{max(self.lengths, default=0)}"
            ]
        if problems:
            raise UserError(*problems)

    def _stage_problems(self) -> list[str]:
        ends = [until for until, _ in self.stages]
        if not ends or ends[-1] is not None or None in ends[:-1]:
            return ["stages: the last stage, and only the last, goes on until null"]
        steps = [0, *(end for end in ends if end is not None)]
        if any(a >= b for a, b in itertools.pairwise(steps)):
            return [f"stages: the steps must rise, not {steps[1:]}"]
        return []

    def _length_problems(self) -> list[str]:
        problems = []
        for _, frames in self.stages:
            if frames < 1 or (self.palindrome and frames % 2):
                problems.append(f"stages: a clip of {frames} frames: take a positive{' even' * self.palindrome} number")
                continue
            source = self._source(frames)
            if source % self.base_segment and self.base_segment % source:
                problems.append(
                    f"stages: a clip of {frames} frames has {source} source frames, which neither divide nor "
                    f"are a multiple of base_segment={self.base_segment}; valid clips: {self._valid_clips()}"
                )
            if self.frames_per_step < 1 or self.frames_per_step % frames:
                problems.append(
                    f"frames_per_step={self.frames_per_step} is not a multiple of the clip's {frames} frames"
                )
        return problems

    def _valid_clips(self) -> str:
        base, fold = self.base_segment, 1 + self.palindrome
        divisors = [d * fold for d in range(1, base) if base % d == 0]
        return ", ".join(map(str, [*divisors, *(k * base * fold for k in range(1, 5))])) + ", ..."

    def _source(self, frames: int) -> int:
        return frames // 2 if self.palindrome else frames

    @functools.cached_property
    def unit(self) -> int:
        """Source frames of a unit."""
        return math.lcm(self.base_segment, *(self._source(frames) for _, frames in self.stages))

    @functools.cached_property
    def _ends(self) -> Ints:
        """For each episode, the number of units up to and with it."""
        return np.cumsum(np.asarray(self.lengths, dtype=np.int64) // self.unit)

    @property
    def units(self) -> int:
        """Units of an epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every unit is seen once."""
        return self.units * self.unit / self._source(self.frames_per_step)

    def frames_at(self, step: int) -> int:
        """T, the length of a clip, at a step."""
        return next(frames for until, frames in self.stages if until is None or step < until)

    def batch(self, step: int) -> GlobalBatch:
        """The clips of a step. Pure."""
        frames = self.frames_at(step)
        source, size = self._source(frames), self.frames_per_step // frames
        slot = np.arange(size, dtype=np.int64)
        position = step * self._source(self.frames_per_step) + slot * source
        epoch, rest = np.divmod(position, self.units * self.unit)
        place, offset = np.divmod(rest, self.unit)
        unit = np.empty(size, dtype=np.int64)
        for e in np.unique(epoch):
            unit[epoch == e] = _permutation(self.units, self.seed, int(e))[place[epoch == e]]
        episode, start = self._locate(unit)
        return GlobalBatch(step, frames, source, size, episode, start + offset, slot)

    def replacement(self, step: int, slot: int, attempt: int) -> tuple[int, int]:
        """(episode, start) of the clip to try for one that cannot be read. Pure, whatever the world size."""
        rng = np.random.default_rng([self.seed, step, slot, attempt, 1])
        source = self._source(self.frames_at(step))
        episode, start = self._locate(rng.integers(self.units, size=1))
        return int(episode[0]), int(start[0]) + source * int(rng.integers(self.unit // source))

    def _locate(self, unit: Ints) -> tuple[Ints, Ints]:
        """Episode number and first frame of units."""
        row = np.searchsorted(self._ends, unit, side="right")
        before = np.where(row > 0, self._ends[row - 1], 0)
        numbers = row if self.numbers is None else np.asarray(self.numbers, dtype=np.int64)[row]
        return numbers.astype(np.int64), (unit - before) * self.unit


@functools.lru_cache(maxsize=4)
def _permutation(units: int, seed: int, epoch: int) -> Ints:
    return np.random.default_rng([seed, epoch]).permutation(units)


def cut(batch: GlobalBatch, rank: int, world: int) -> GlobalBatch:
    """The share of one rank. Shares differ by at most one clip: weigh losses by the loaded `weight`."""
    if batch.size < world:
        raise UserError(
            f"{batch.size} clips a step cannot feed {world} workers: raise frames_per_step or lower workers"
        )
    part = slice(rank * batch.size // world, (rank + 1) * batch.size // world)
    share = (batch.episode[part], batch.start[part], batch.slot[part])
    return GlobalBatch(batch.step, batch.frames, batch.source, batch.size, *share)


# --- clips --------------------------------------------------------------------------------------------------


def relative_pose(pose: NDArray[Any]) -> NDArray[np.float32]:
    """(T, 3) of x, y, yaw → (T, 4): dx, dy in the first frame's own axes, cos and sin of the turn since."""
    x, y, yaw = np.asarray(pose, dtype=np.float64).T
    dx, dy, turn = x - x[0], y - y[0], yaw - yaw[0]
    ahead, left = math.cos(yaw[0]), math.sin(yaw[0])
    columns = (dx * ahead + dy * left, dy * ahead - dx * left, np.cos(turn), np.sin(turn))
    return np.stack(columns, axis=1).astype(np.float32)


def load_clips(dataset: Dataset, batch: GlobalBatch, palindrome: bool = False, replace: Replace | None = None) -> Batch:
    """Read the clips of a batch.

    Returns frames uint8 (B, T, H, W, 3), actions float32 (B, T, A), pose float32 (B, T, 4) where there is
    one, and of each clip episode, start, slot and `replaced` (clips tried before it), int64 (B,); weight
    float64 (1,): this share of the whole batch. A clip's first action is the null action, and so is every
    action on the way back of a palindrome: what was recorded on the way there does not lead back.
    `replace(step, slot, attempt)` names the clip to take for a corrupt one; without it CorruptData is
    raised.
    """
    clips: list[dict[str, Any]] = []
    for episode, start, slot in zip(batch.episode, batch.start, batch.slot, strict=True):
        clips.append(_load(dataset, batch, int(episode), int(start), int(slot), palindrome, replace))
    stacked = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    return {**stacked, "weight": np.array([len(clips) / batch.size])}


def _load(
    dataset: Dataset,
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
            clip = _clip(source, dataset.action_vectors(source.actions), palindrome)
            return {**clip, **{k: np.int64(v) for k, v in place.items()}}
    raise AssertionError("unreachable")


def _clip(source: Episode, actions: NDArray[np.float32], palindrome: bool) -> Batch:
    actions = actions.copy()
    actions[0] = 0
    clip = {"frames": source.frames, "actions": actions}
    if source.pose is not None:
        clip["pose"] = relative_pose(source.pose)
    if not palindrome:
        return clip
    back = {name: array[::-1] for name, array in clip.items()} | {"actions": np.zeros_like(actions)}
    return {name: np.concatenate([array, back[name]]) for name, array in clip.items()}


# --- batches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loader:
    """Step → its loaded share; picklable, for a Ray Data task."""

    dataset: Dataset
    plan: Plan
    rank: int
    world: int

    def load(self, step: int) -> Batch:
        share = cut(self.plan.batch(step), self.rank, self.world)
        return load_clips(self.dataset, share, self.plan.palindrome, self.plan.replacement)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"step": row["step"], **self.load(int(row["step"]))}


def local_batches(
    dataset: Dataset, plan: Plan, rank: int, world: int, start_step: int, stop_step: int, ahead: int = 2
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
    dataset: Dataset,
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

    Steps go to Ray Data in windows that fit into `memory_mb` whole, so that its executor can finish and leave the rank
    alone while the clips are trained on.
    """
    loader = _Loader(dataset, plan, rank, world)
    step_bytes = plan.frames_per_step * math.prod(dataset.frame_shape) // world
    window = max(1, min(WINDOW, memory_mb * 2**20 // step_bytes))
    per_task = max(1, min(window // 2, TASK_BYTES // step_bytes))
    _configure_ray_data(cpus, 4 * window * step_bytes)
    for start in range(start_step, stop_step, window):
        yield from _window(loader, range(start, min(start + window, stop_step)), per_task, cpus)


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
