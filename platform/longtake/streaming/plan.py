"""Which frames every step of a training sees, as a pure function of the step.

Words: a *clip* of T frames is made of S *source frames*, S = T x stride, or half of that where its second half comes
back to the first (a palindrome: the way back; a revisit: in any order). In a mixture of all kinds S = T x stride, and a
clip that comes back uses one half of them. A *segment* is `base_segment` source frames of an episode; a *unit* is the
shortest run of segments that every stage cuts evenly. An epoch is a permutation of all units; laid end to end they are
one long line of source frames, of which step s owns the same number as every other: so the step is the only position
there is. Resume is arithmetic, another number of workers cuts the same batch differently, and a stage of the
clip-length curriculum moves nothing.

Of several datasets each has such a line of its own. Units are dealt to them by weight as evenly as whole numbers can
be, so what each has given until any step follows from the step as well: shares are met, not drawn.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from longtake.datasets.mixture import Ints
from longtake.errors import UserError
from longtake.streaming.shuffles import ROUNDS, Hashes, Locality, hashed, locally_shuffled, shuffled
from longtake.streaming.visits import revisit, way_back

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data

Stage = tuple[int | None, int]

Clip = Literal["forward", "palindrome", "revisit", "mixed"]
"""What clips are: as recorded; a walk and its way back; a walk and visits of its places in any order; some of each."""
MIXED: tuple[Clip, ...] = ("forward", "palindrome", "revisit", "revisit")
"""What a clip of the mixture is one of."""


@dataclass(frozen=True)
class GlobalBatch:
    """Clips of `frames` frames (from `source` source frames) at frame start[i] of episode[i].

    slot[i] is a clip's place in the whole batch of `size` clips; every `stride`-th source frame is taken. order[i] says
    which of those taken each frame of the clip is: 0, 1, ... at first, then on, or back to some of them.
    """

    step: int
    frames: int
    source: int
    size: int
    episode: Ints
    start: Ints
    slot: Ints
    order: Ints
    stride: int = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """The whole training as arithmetic.

    lengths: frames of each episode. numbers: their numbers in the data (default: 0, 1, ...).
    stages: (until this step, frames T of a clip); the last one until None.
    frames_per_step: clips x T, the same in every stage. Frames at an episode's end that fill no
        whole unit are unused.
    part: which dataset each episode is of; weights: whole numbers, how often each dataset has its turn.
    stride: source frames from one frame of a clip to the next.
    random_start: an episode's units begin elsewhere in every epoch, which costs it up to one unit.
    locality: an epoch's order keeps neighbouring episodes together; None: it mixes all with all.
    Raises UserError with every problem.
    """

    lengths: Ints
    stages: Sequence[Stage]
    frames_per_step: int
    base_segment: int
    seed: int
    clip: Clip = "forward"
    numbers: Ints | None = None
    part: Ints | None = None
    weights: tuple[int, ...] = (1,)
    stride: int = 1
    random_start: bool = False
    locality: Locality | None = None

    @classmethod
    def of(
        cls,
        data: Data,
        split: str,
        *,
        stages: Sequence[Stage],
        frames_per_step: int,
        base_segment: int,
        seed: int,
        clip: Clip = "forward",
        stride: int = 1,
        random_start: bool = False,
        locality: Locality | None = None,
    ) -> Plan:
        """The plan over one split of a dataset, or of a mixture of some."""
        chosen = data.episodes(split)
        lengths, numbers = chosen["length"].to_numpy(np.int64), chosen["episode"].to_numpy(np.int64)
        return cls(
            lengths,
            tuple(stages),
            frames_per_step,
            base_segment,
            seed,
            clip,
            numbers,
            data.part_of(numbers),
            data.weights,
            stride,
            random_start,
            locality,
        )

    def __post_init__(self) -> None:
        problems = [*self._stage_problems(), *self._length_problems()]
        if not problems:
            problems = [self._too_short(part) for part, line in enumerate(self._lines) if not line.units]
        if problems:
            raise UserError(*problems)

    def _too_short(self, part: int) -> str:
        of = f" of dataset {part}" if len(self.weights) > 1 else ""
        return (
            f"no episode{of} is long enough: a unit is {self.unit} frames (the least common multiple of "
            f"base_segment={self.base_segment} and the clips), the longest episode has "
            f"{max(self.lengths[self._part == part], default=0)}"
        )

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
            halves = self.clip != "forward"
            if frames < 1 or (halves and frames % 2):
                problems.append(f"stages: a clip of {frames} frames: take a positive{' even' * halves} number")
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
        base, fold = self.base_segment, self._fold
        sources = [*(d for d in range(1, base) if base % d == 0), *(k * base for k in range(1, 5 * self.stride))]
        clips = [source // self.stride * fold for source in sources if source % self.stride == 0]
        return ", ".join(map(str, clips)) + ", ..."

    def _source(self, frames: int) -> int:
        return frames // self._fold * self.stride

    @property
    def _fold(self) -> int:
        return 2 if self.clip in ("palindrome", "revisit") else 1

    @functools.cached_property
    def unit(self) -> int:
        """Source frames of a unit."""
        return math.lcm(self.base_segment, *(self._source(frames) for _, frames in self.stages))

    @functools.cached_property
    def _part(self) -> Ints:
        return np.zeros(len(self.lengths), np.int64) if self.part is None else self.part

    @functools.cached_property
    def _lines(self) -> list[_Line]:
        numbers = np.arange(len(self.lengths)) if self.numbers is None else self.numbers
        lines = []
        for part in range(len(self.weights)):
            mine = self._part == part
            key = (self.seed, part)
            line = _Line.of(self.lengths[mine], numbers[mine], self.unit, self.random_start, key, self.locality)
            lines.append(line)
        return lines

    @property
    def units(self) -> int:
        """Units of an epoch, of all datasets together."""
        return sum(line.units for line in self._lines)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many units are seen as there are: with one dataset, every unit once."""
        return self.units * self.unit / self._source(self.frames_per_step)

    def epochs(self, steps: int) -> list[tuple[float, float]]:
        """For each dataset, its share of the units drawn in that many steps, and how often it is gone through."""
        drawn = steps * self._source(self.frames_per_step) // self.unit
        counts = _dealt(drawn, self.weights)
        return [(n / max(1, drawn), n / line.units) for n, line in zip(counts, self._lines, strict=True)]

    def frames_at(self, step: int) -> int:
        """T, the length of a clip, at a step."""
        return next(frames for until, frames in self.stages if until is None or step < until)

    def batch(self, step: int) -> GlobalBatch:
        """The clips of a step. Pure."""
        frames = self.frames_at(step)
        source, size = self._source(frames), self.frames_per_step // frames
        slot = np.arange(size, dtype=np.int64)
        part, turn, offset = self._place(step, slot)
        episode, start = np.empty(size, np.int64), np.empty(size, np.int64)
        for number in np.unique(part):
            mine = part == number
            episode[mine], start[mine] = self._lines[number].at(turn[mine])
        half, order = self._orders(step, slot, frames)
        start += offset + half * (frames // 2 * self.stride)
        return GlobalBatch(step, frames, source, size, episode, start, slot, order, self.stride)

    def _orders(self, step: int, slot: Ints, frames: int) -> tuple[Ints, Ints]:
        """For slots of a step: which half of the source frames a clip begins with, and the order of its frames."""
        half, order = np.zeros_like(slot), np.tile(np.arange(frames), (len(slot), 1))
        for row, number in enumerate(slot.tolist() if self.clip != "forward" else []):
            rng = np.random.default_rng([self.seed, step, number, 2, 0])
            mixed = self.clip == "mixed"
            kind: Clip = MIXED[rng.integers(len(MIXED))] if mixed else self.clip
            if kind != "forward":
                half[row] = rng.integers(1 + mixed)
                visits = way_back if kind == "palindrome" else revisit
                order[row, frames // 2 :] = visits(frames // 2, frames // 2, rng)
        return half, order

    def _place(self, step: int, slot: Ints) -> tuple[Ints, Ints, Ints]:
        """For slots of a step: the dataset, the how-manieth unit of its line, and the frame within it."""
        position = step * self._source(self.frames_per_step) + slot * self._source(self.frames_at(step))
        unit, offset = np.divmod(position, self.unit)
        return *_deal(unit, self.weights), offset

    def replacement(self, step: int, slot: int, attempt: int) -> tuple[int, int]:
        """(episode, start) of the clip to try for one that cannot be read, of the same dataset.

        Pure, whatever the world size.
        """
        rng = np.random.default_rng([self.seed, step, slot, attempt, 1])
        source = self._source(self.frames_at(step))
        part, _, _ = self._place(step, np.array([slot]))
        line = self._lines[int(part[0])]
        episode, start = line.at(rng.integers(line.units, size=1))
        return int(episode[0]), int(start[0]) + source * int(rng.integers(self.unit // source))


@dataclass(frozen=True, eq=False)
class _Line:
    """The units of one dataset, epoch after epoch.

    ends: for each episode, the number of units up to and with it. spare: its frames that no unit needs, which shift
    the units where starts are random. key: (seed, part).
    """

    ends: Ints
    numbers: Ints
    spare: Ints
    unit: int
    shifted: bool
    key: tuple[int, int]
    locality: Locality | None = None

    @classmethod
    def of(
        cls,
        lengths: Ints,
        numbers: Ints,
        unit: int,
        shifted: bool,
        key: tuple[int, int],
        locality: Locality | None = None,
    ) -> _Line:
        lengths = np.asarray(lengths, np.int64)
        units = lengths // unit
        if shifted:
            units = np.where(units > 1, (lengths - unit + 1) // unit, units)
        return cls(
            np.cumsum(units), np.asarray(numbers, np.int64), lengths - units * unit, unit, shifted, key, locality
        )

    @property
    def units(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, turn: Ints) -> tuple[Ints, Ints]:
        """Episode number and first frame of the units that have these turns."""
        episode, start = np.empty_like(turn), np.empty_like(turn)
        epochs, places = np.divmod(turn, self.units)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            episode[mine], start[mine] = self._in_epoch(int(epoch), places[mine])
        return episode, start

    def _in_epoch(self, epoch: int, place: Ints) -> tuple[Ints, Ints]:
        seed, part = self.key
        keys: Hashes = (
            np.random.SeedSequence([seed, epoch, part]).generate_state(2 * ROUNDS + 1, np.uint64).astype(np.uint64)
        )
        unit = self._mixed(place, keys[1:])
        row = np.searchsorted(self.ends, unit, side="right")
        before = np.where(row > 0, self.ends[row - 1], 0)
        start = (unit - before) * self.unit
        if self.shifted:
            start = start + (hashed(row, keys[0]) % (self.spare[row] + 1).astype(np.uint64)).astype(np.int64)
        return self.numbers[row], start

    def _mixed(self, place: Ints, keys: Hashes) -> Ints:
        """The units at these places of an epoch."""
        if self.locality is None:
            return shuffled(place, self.units, keys)
        group = max(1, self.units * self.locality.episodes // max(1, len(self.ends)))
        return locally_shuffled(place, self.units, group, self.locality.groups, keys)


def _deal(turn: Ints, weights: Sequence[int]) -> tuple[Ints, Ints]:
    """(dataset, turn within it) for turns of all together; each has its share of any first n turns, but for one each.

    The last dataset takes its share of all turns evenly spread, the last but one of what is left, and so on.
    """
    part, turn, free = np.zeros_like(turn), turn.copy(), np.ones(len(turn), bool)
    for last in range(len(weights) - 1, 0, -1):
        weight, total = weights[last], sum(weights[: last + 1])
        before = turn * weight // total
        taken = free & ((turn + 1) * weight // total > before)
        part[taken] = last
        turn = np.where(taken, before, np.where(free, turn - before, turn))
        free &= ~taken
    return part, turn


def _dealt(turns: int, weights: Sequence[int]) -> list[int]:
    """How many of the first turns each dataset has."""
    counts = []
    for last in range(len(weights) - 1, -1, -1):
        counts.append(turns * weights[last] // sum(weights[: last + 1]))
        turns -= counts[-1]
    return counts[::-1]


def rank_slice(batch: GlobalBatch, rank: int, world: int) -> GlobalBatch:
    """The share of one rank. Shares differ by at most one clip: weigh losses by the loaded `weight`."""
    if batch.size < world:
        raise UserError(
            f"{batch.size} clips a step cannot feed {world} workers: raise frames_per_step or lower workers"
        )
    part = slice(rank * batch.size // world, (rank + 1) * batch.size // world)
    share = (batch.episode[part], batch.start[part], batch.slot[part], batch.order[part])
    return GlobalBatch(batch.step, batch.frames, batch.source, batch.size, *share, batch.stride)
