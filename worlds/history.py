"""What a world has been through: enough to go back to any of its frames, in room that hardly grows.

Of every frame the action and the pose are kept, a few numbers; of some frames the whole state, more of late ones than
of early ones. Going back takes the last state kept before the frame and lives through what followed once more, which
gives the same bits. Letters: b streams, t frames, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.errors import UserError
from longtake.models.memory import Memory
from longtake.models.streams import StreamState

Told = NDArray[np.float64]
EVERY = 8
"""Frames from one kept state to the next, before old ones are given up."""


@dataclass(frozen=True)
class Moment:
    """All that a world goes on from. poses (b, 3): of the stream's first frame, of the last but one, and the last."""

    state: StreamState
    frames: int = 0
    origin: Told | None = None
    before: Told | None = None
    pose: Told | None = None

    def of_streams(self, chosen: Sequence[int]) -> Moment:
        """The same for some streams; one that is named twice is there twice."""
        origin, before, pose = (
            None if part is None else part[list(chosen)] for part in (self.origin, self.before, self.pose)
        )
        return Moment(self.state.of_streams(chosen), self.frames, origin, before, pose)

    def after(self, event: Event) -> Moment:
        """Where one is after an event; the state comes later."""
        if event.forgets:
            return self
        frames = self.frames + event.actions.shape[1]
        if event.poses is None:
            return replace(self, frames=frames)
        before = self.pose if event.poses.shape[1] == 1 else event.poses[:, -2]
        origin = event.poses[:, 0] if self.origin is None else self.origin
        return replace(self, frames=frames, origin=origin, before=before, pose=event.poses[:, -1])

    @staticmethod
    def side_by_side(moments: Sequence[Moment]) -> Moment:
        """Moments of one model as one, of the age of the oldest. Raises UserError where they cannot go together."""
        memories = [moment.state.memory for moment in moments]
        noise = tuple(part for moment in moments for part in moment.state.noise)
        counts = [len(moment.state.noise) for moment in moments]
        listed = [memory for memory in memories if memory is not None]
        if listed and len(listed) < len(memories):
            raise UserError("side by side: some of these worlds remember something and some do not")
        try:
            memory = Memory.side_by_side(listed, counts) if listed else None
        except ValueError as error:
            raise UserError(f"side by side: {error}") from None
        poses = [[getattr(moment, name) for moment in moments] for name in ("origin", "before", "pose")]
        origin, before, pose = (None if any(p is None for p in part) else np.concatenate(part) for part in poses)
        frames = max(moment.frames for moment in moments)
        return Moment(StreamState(memory, noise), frames, origin, before, pose)


@dataclass(frozen=True)
class Event:
    """What happened: frames (b, t, H, W, 3) were shown, t were made, or all was forgotten (t = 0)."""

    actions: NDArray[np.float32]
    poses: Told | None
    shown: Tensor | None = None

    @property
    def forgets(self) -> bool:
        """Whether it is the end of what was remembered."""
        return not self.actions.size

    def first(self, frames: int) -> Event:
        """Its first frames alone."""
        shown = None if self.shown is None else self.shown[:, :frames]
        return Event(self.actions[:, :frames], None if self.poses is None else self.poses[:, :frames], shown)


class Table:
    """Rows of one shape that grow by doubling."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self._rows: NDArray[Any] = np.zeros((64, *shape), dtype)
        self.length = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows (t, ...)."""
        while self.length + len(rows) > len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self.length : self.length + len(rows)] = rows
        self.length += len(rows)

    def __getitem__(self, span: slice) -> NDArray[Any]:
        rows: NDArray[Any] = self._rows[: self.length][span]
        return rows


class History:
    """The events since a first moment, and states of some moments since then.

    Histories are grown at their end alone: one that goes back becomes another, so that forks can share what was.
    """

    def __init__(
        self, start: Moment, actions: int, states: int, parent: tuple[History, tuple[int, ...]] | None = None
    ) -> None:
        """`actions`: numbers of one; `states`: how many are kept, two at least, or nothing with 0;
        `parent`: what was before, and of which streams."""
        self.start, self.states, self.parent = start, states, parent
        self._width, self._streams = actions, len(start.state.noise)
        self._actions = Table((self._streams, actions), np.float32)
        self._poses = Table((self._streams, 3), np.float64)
        self._frames: list[int] = []  # of each event
        self._shown: dict[int, Tensor] = {}
        self._kept: list[tuple[int, Moment]] = [(0, start)]

    @property
    def length(self) -> int:
        """Frames since its first moment."""
        return self._actions.length

    @property
    def earliest(self) -> int:
        """The first frame that one can go back to."""
        return self.start.frames if self.parent is None else self.parent[0].earliest

    def add(self, event: Event, after: Moment) -> None:
        """Something happened, and this is where it led."""
        if not self.states:
            return
        self.record(event)
        if event.shown is not None or event.forgets or after.frames - self._kept[-1][1].frames >= EVERY:
            self.keep_now(after)

    def record(self, event: Event) -> None:
        """Something happened."""
        if event.shown is not None:
            self._shown[len(self._frames)] = event.shown
        self._frames.append(event.actions.shape[1])
        self._actions.add(event.actions.swapaxes(0, 1))
        if event.poses is not None:
            self._poses.add(event.poses.swapaxes(0, 1))

    def keep_now(self, after: Moment) -> None:
        """Keep the whole state after what has happened so far, and give up an earlier one where there are too many."""
        self._kept.append((len(self._frames), after))
        if len(self._kept) > max(2, self.states):
            now = after.frames
            ages = [now - moment.frames for _, moment in self._kept]
            # What is given up leaves the smallest gap behind it, measured by how long ago that is.
            gaps = [(ages[i - 1] - ages[i + 1]) / (ages[i] + EVERY) for i in range(1, len(ages) - 1)]
            del self._kept[1 + int(np.argmin(gaps))]

    def events(self, since: int) -> list[Event]:
        """The events from number `since` on."""
        results, at = [], sum(self._frames[:since])
        for number in range(since, len(self._frames)):
            stop = at + self._frames[number]
            poses = self._poses[at:stop].swapaxes(0, 1) if self._poses.length else None
            results.append(Event(self._actions[at:stop].swapaxes(0, 1), poses, self._shown.get(number)))
            at = stop
        return results

    def before(self, frame: int) -> tuple[History, Moment, list[Event]]:
        """The last kept moment at or before a frame, the history up to it, and what happened from it to the frame.

        A frame before its first moment is looked up in what was before.
        """
        if frame < self.start.frames:
            assert self.parent is not None, f"frame {frame} is before the first one"
            earlier, streams = self.parent
            history, moment, events = earlier.before(frame)
            lived = History(moment.of_streams(streams), self._width, self.states, (history, streams))
            return lived, lived.start, [_of_streams(event, streams) for event in events]
        number, moment = next(pair for pair in reversed(self._kept) if pair[1].frames <= frame)
        events, left = [], frame - moment.frames
        for event in self.events(number):
            if not left:
                break
            events.append(event.first(left))
            left -= events[-1].actions.shape[1]
        return self._until(number, moment), moment, events

    def _until(self, number: int, moment: Moment) -> History:
        """Its first events alone, as another history."""
        cut = History(self.start, self._width, self.states, self.parent)
        frames = sum(self._frames[:number])
        cut._frames = self._frames[:number]
        cut._actions.add(self._actions[:frames])
        cut._poses.add(self._poses[:frames])
        cut._shown = {at: shown for at, shown in self._shown.items() if at < number}
        cut._kept = [pair for pair in self._kept if pair[0] <= number]
        return cut

    def forked(self, now: Moment, streams: tuple[int, ...]) -> History:
        """The history of some of its streams, from now on a history of their own."""
        return History(now.of_streams(streams), self._width, self.states, (self, streams))


def _of_streams(event: Event, streams: Sequence[int]) -> Event:
    chosen = list(streams)
    poses = None if event.poses is None else event.poses[chosen]
    return replace(event, actions=event.actions[chosen], poses=poses, shown=_taken(event.shown, chosen))


def _taken(shown: Tensor | None, chosen: list[int]) -> Tensor | None:
    return None if shown is None else shown[torch.tensor(chosen)]
