"""What is played: the dream, the same dream with its memory wiped, and beside them the true world where there is one.

All are given the same actions. Where the true world is there it also says the pose, so walls are walls; else the
pose is where actions lead by the dataset's controls. Nothing here knows of pages or sockets.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtake.errors import UserError
from longtake.jobs.latents import pictures
from longtake.sources import simulators
from longtake.worlds.remote import RemoteWorld
from longtake.worlds.world import World

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset

Frame = NDArray[np.uint8]
Held = World | RemoteWorld
MOST_FUTURES = 4
RECENT = 30
"""Frames over which the pace is told."""


@dataclass(frozen=True)
class Picture:
    """A picture that is shown: whose it is, and how near to the truth in dB where that is known."""

    name: str
    frame: Frame
    psnr: float | None = None


@dataclass
class Recording:
    """What was played since recording began, as an episode."""

    frames: list[Frame] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    poses: list[NDArray[np.float64]] = field(default_factory=list)


class Game:
    """One world under one's keys, from a context on."""

    def __init__(self, world: Held, dataset: Dataset, context: int, start: int) -> None:
        """`world`: fresh, of one stream; `dataset`: with pictures; contexts of so many frames from frame `start` on."""
        self._fresh, self._dataset, self._context, self._start = world, dataset, context, start
        listed = dataset.episodes("test")
        self.episodes: list[int] = listed.episode[listed.length >= start + context].tolist()
        if not self.episodes:
            raise UserError(f"context: {start} + {context} frames, but no test episode of {dataset.name} has so many")
        self.number, self._ended = -1, contextlib.ExitStack()
        self._played: list[Held] = []
        self.finished: list[Recording] = []
        self.recording: Recording | None = None

    def begin(self, number: int) -> None:
        """Show the context of another episode, the first of the list after the last."""
        self.number = number % len(self.episodes)
        episode = self.episodes[self.number]
        stop = self._start + self._context
        seen = self._dataset.read(episode, self._start, stop)
        frames, actions = pictures.shown(self._dataset, seen.frames), self._dataset.action_vectors(seen.actions)
        _let_go(self._played)
        self.dream: Held = self._fresh.copy()
        self.dream.observe(frames, actions=actions, pose=seen.pose)
        self.wiped: Held = self.dream.copy().forget()
        self._played = [self.dream, self.wiped]
        self.futures: list[Held] = []
        self.chosen = 0
        self._done: list[NDArray[np.float32]] = []
        self._simulate(episode, stop)
        self._last = [Picture("context", frames[-1])]
        self._paces: list[float] = []
        self.trail: list[list[float]] = [] if seen.pose is None else seen.pose[:, :3].astype(float).tolist()
        self._drop_recording()

    def _simulate(self, episode: int, stop: int) -> None:
        """The true world after the context; `why_no_truth` says why there is none."""
        self._ended.close()
        self._ended, self.truth = contextlib.ExitStack(), None
        self.why_no_truth = simulators.why_none(self._dataset)
        if self.why_no_truth is None:
            self.truth = self._ended.enter_context(simulators.simulated(self._dataset, episode, stop))

    def close(self) -> None:
        """End the simulator, and what a service holds of it."""
        _let_go([self._fresh, *self._played])
        self._ended.close()

    @property
    def frame(self) -> int:
        """Frames since the context."""
        return len(self._done)

    @property
    def pace(self) -> float:
        """Seconds that a frame of the last ones took to make."""
        return float(np.mean(self._paces)) if self._paces else 0.0

    def step(self, keys: set[str]) -> None:
        """Let everything go on by a frame; while futures are side by side, the chosen one alone."""
        action, began = self._fresh.controls.held(keys), time.perf_counter()
        if self.futures:
            output = self.futures[self.chosen].step(action)
            self._led[self.chosen].append(action)
            self._last[self.chosen] = Picture(self._last[self.chosen].name, output)
        else:
            self._advance(action)
        self._paces = [*self._paces[1 - RECENT :], time.perf_counter() - began]

    def _advance(self, action: NDArray[np.float32]) -> None:
        pose = None
        if self.truth is not None:
            for _ in range(self._fresh.about.stride):
                self.truth.step(action)
            pose = self.truth.pose
        dream, wiped = self.dream.step(action, pose=pose), self.wiped.step(action, pose=pose)
        self._done.append(action)
        true = None if self.truth is None else self.truth.frame
        self._last = [] if true is None else [Picture("truth", true)]
        self._last += [Picture("dream", dream, _psnr(true, dream)), Picture("wiped", wiped, _psnr(true, wiped))]
        if self.dream.pose is not None:
            self.trail.append([float(number) for number in self.dream.pose])
        if self.recording is not None:
            self.recording.frames.append(dream)
            self.recording.actions.append(action)
            self.recording.poses.append(np.zeros(3) if self.dream.pose is None else self.dream.pose)

    def rewind(self, frame: int) -> None:
        """Go back to a frame after the context; what was made since is gone. Raises UserError."""
        if not 0 <= frame <= self.frame or self.futures:
            raise UserError(f"rewind: to frame {frame}; there are 0 to {self.frame}" if not self.futures else FORKED)
        back = self.frame - frame
        self.dream.rewind(back)
        self.wiped.rewind(back)
        del self._done[frame:]
        del self.trail[len(self.trail) - back :]
        self._drop_recording()
        self._simulate_again()

    def _simulate_again(self) -> None:
        """Bring the true world to where the dream is: it cannot go back, so it is lived through once more."""
        if self.truth is not None:
            self._simulate(self.episodes[self.number], self._start + self._context)
            for action in self._done:
                for _ in range(self._fresh.about.stride):
                    self.truth.step(action)

    def replay(self) -> list[NDArray[np.float32]]:
        """Go back to the context, and the actions that led here: given again they make the same frames."""
        done = list(self._done)
        self.rewind(0)
        return done

    def act(self, action: NDArray[np.float32]) -> None:
        """Let everything go on by a frame of a replay."""
        self._advance(action)

    def fork(self, futures: int) -> None:
        """Several futures side by side, each led alone. Raises UserError."""
        if not 2 <= futures <= MOST_FUTURES:
            raise UserError(f"fork: {futures} futures; 2 to {MOST_FUTURES} fit")
        forked = self.dream.fork(futures)
        self.futures, self.chosen = [*forked.streams_apart()], 0
        self._played += [forked, *self.futures]
        self._led: list[list[NDArray[np.float32]]] = [[] for _ in self.futures]
        last = next((picture.frame for picture in self._last if picture.name == "dream"), self._last[0].frame)
        self._last = [Picture(f"future {number + 1}", last) for number in range(futures)]
        self._forked_at = self.dream.frames

    def choose(self, future: int) -> None:
        """Lead another future from now on. Raises UserError."""
        if not 0 <= future < len(self.futures):
            raise UserError(f"choose: future {future + 1}; there are {len(self.futures)}")
        self.chosen = future

    def keep(self) -> None:
        """Go on with the chosen future alone; the wiped dream and the true world do what was done in it."""
        if not self.futures:
            raise UserError("keep: nothing is forked")
        self.futures = []
        for action in self._led[self.chosen]:
            self._advance(action)

    def status(self) -> dict[str, Any]:
        """All that a page tells beside the pictures."""
        world = self.futures[self.chosen] if self.futures else self.dream
        return {
            "frame": self.frame,
            "context": self._context,
            "episode": self.episodes[self.number],
            "ms": 1000 * self.pace,
            "carried": world.nbytes,
            "attention": world.attention_nbytes,
            "beyond": world.trained_frames is not None and world.frames > world.trained_frames,
            "futures": len(self.futures),
            "chosen": self.chosen,
            "recording": None if self.recording is None else len(self.recording.frames),
            "recorded": len(self.finished),
            "pose": None if world.pose is None else [float(number) for number in world.pose],
            "panes": [
                {"name": p.name, "height": p.frame.shape[0], "width": p.frame.shape[1], "psnr": p.psnr}
                for p in self._last
            ],
        }

    def pixels(self) -> bytes:
        """The pictures of `status`, one after another, RGB."""
        return b"".join(picture.frame.tobytes() for picture in self._last)

    def record(self) -> None:
        """Begin to record, or end it and keep what was recorded."""
        if self.recording is None:
            self.recording = Recording()
        else:
            if self.recording.frames:
                self.finished.append(self.recording)
            self.recording = None

    def _drop_recording(self) -> None:
        """A recording is one walk: where it is broken off, what there is of it is kept."""
        if self.recording is not None:
            self.record()


def _let_go(worlds: Sequence[Held]) -> None:
    """A service keeps a world until it is ended; one of this process goes by itself."""
    for world in worlds:
        if isinstance(world, RemoteWorld):
            world.end()


FORKED = "rewind: not while futures are side by side; keep one first"


def _psnr(truth: Frame | None, output: Frame) -> float | None:
    """Of a picture, in dB; of equal ones 99."""
    if truth is None:
        return None
    error = np.mean((truth.astype(float) - output) ** 2)
    return float(min(99.0, 10 * np.log10(255**2 / error))) if error else 99.0
