"""A world that one holds: a trained model with what it remembers, in numpy pictures.

    world = World.load("latest", store="store")
    world.observe(frames, pose=pose)             # uint8 (T, H, W, 3): what was seen
    frame = world.step("forward")                # uint8 (H, W, 3): what comes next
    left, right = world.fork(2).streams_apart()  # two futures of one past
    world.rewind(1)

The memory is of one size however long it has been, so forks, moments to go back to and saved worlds cost little.
`evaluate` makes its frames by the same class of streams: for the same seeds, context and batch they are the same bits.
Letters: b streams, T frames, A numbers of an action; without `streams` arrays have no b.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from longtake.datasets.controls import Controls
from longtake.errors import UserError
from longtake.models.conditions import Conditions
from longtake.models.config import SamplerConfig
from longtake.models.memory import Memory
from longtake.models.streams import Streams, StreamState
from longtake.motion import relative_pose
from longtake.worlds import saved
from longtake.worlds.about import About
from longtake.worlds.history import Event, History, Moment
from longtake.worlds.inputs import Action, Frames, Inputs
from longtake.worlds.source import WorldSource, open_source

STATES = 8
"""Moments whose whole state is kept, so that one can go back."""


class World:
    """Streams of a world model, each with a memory of its own, that advance together."""

    def __init__(
        self, source: WorldSource, streams: Streams, moment: Moment, history: History, *, single: bool, beyond: bool
    ) -> None:
        """Made by `load`, `resume`, `fork` and their like. `single`: arrays have no axis of streams."""
        self.source, self._streams, self._moment, self._history = source, streams, moment, history
        self._single, self._beyond = single, beyond

    @classmethod
    def load(
        cls,
        name: str = "latest",
        *,
        store: str | None = None,
        step: int | None = None,
        device: str = "cpu",
        streams: int | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        sampler: SamplerConfig | None = None,
        states: int = STATES,
        beyond_training: bool = False,
    ) -> World:
        """A fresh world in which nothing has been seen.

        Args:
            name: a run's id or name, `latest`, an exported folder, or OWNER/NAME of the hub.
            store: of a run; LONGTAKE_STORE, else `store`, if not given.
            step: of a run's checkpoint; the newest if not given.
            streams: how many go side by side; None: one, whose arrays have no axis for it.
            seed: of the noise; stream i has the one that `evaluate` gives episode i, or that of `seeds`.
            sampler: how a frame is made.
            states: moments whose whole state is kept to go back to; 0: it cannot go back.
            beyond_training: allow a context longer than the clips of the training.

        Raises:
            UserError: what is named is not there, damaged, or no world model.
        """
        source = open_source(name, store or os.environ.get("LONGTAKE_STORE", "store"), step, device)
        count = 1 if streams is None else streams
        noise = seeds if seeds is not None else [zlib.crc32(f"{seed}/{stream}".encode()) for stream in range(count)]
        if count < 1 or len(noise) != count:
            raise UserError(f"streams: {count} with {len(noise)} seeds; at least one, and a seed for each")
        output = Streams(source.model, source.tokenizer, sampler or SamplerConfig(), noise)
        moment = Moment(output.state)
        history = History(moment, source.about.controls.width, states)
        return cls(source, output, moment, history, single=streams is None, beyond=beyond_training)

    @classmethod
    def resume(
        cls, path: str | Path, *, name: str | None = None, store: str | None = None, device: str = "cpu"
    ) -> World:
        """The world that `save` wrote, in this process or another; name and store: where its model is now.

        Raises:
            UserError: no such file, or another model's.
        """
        return cls.of_saved(saved.read(Path(path), name, store, device))

    @classmethod
    def of_saved(cls, facts: saved.SavedWorld, least: int = 1) -> World:
        """The world that was saved. `least`: streams of a forward pass, see `longtake.models.streams.Streams`."""
        fresh = Streams(facts.source.model, facts.source.tokenizer, facts.sampler, [0], least)
        streams = fresh.with_state(facts.now.state)
        return cls(facts.source, streams, facts.now, facts.history, single=facts.single, beyond=facts.beyond)

    @property
    def as_saved(self) -> saved.SavedWorld:
        """All that it goes on from: memory, noise, poses, what happened."""
        return saved.SavedWorld(self.source, self.sampler, self._moment, self._history, self._single, self._beyond)

    def save(self, path: str | Path) -> None:
        """Write all that it goes on from into one file of a few megabytes."""
        saved.write(self.as_saved, Path(path))

    # --- what it is ----------------------------------------------------------------------------------------

    @property
    def about(self) -> About:
        """Its name, frames and actions."""
        return self.source.about

    @property
    def controls(self) -> Controls:
        """What can be done in it, by name and key, and how that moves the pose."""
        return self.about.controls

    @property
    def action_names(self) -> tuple[str, ...]:
        """Actions that `step` takes by name."""
        return tuple(control.name for control in self.controls.controls)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of a picture."""
        return self.about.frame_shape

    @property
    def fps(self) -> float:
        """Pictures per second of world time."""
        return self.about.fps

    @property
    def sampler(self) -> SamplerConfig:
        """How its frames are made."""
        return self._streams.sampler

    @property
    def trained_frames(self) -> int | None:
        """Frames of the longest clips of its training: beyond them it extrapolates."""
        return self.source.model.trained_frames

    @property
    def conditioning(self) -> str:
        """What its model is told of each frame: pose, actions or both."""
        conditions = self.source.model.config.conditions
        assert isinstance(conditions, str)  # of others no world is opened
        return conditions

    @property
    def frames_per_step(self) -> int:
        """Frames that one step makes; with more than one, actions and what is made have an axis T."""
        return self._streams.frames_per_step

    @property
    def streams(self) -> int:
        """How many go side by side."""
        return len(self._streams)

    @property
    def frames(self) -> int:
        """Frames seen and made so far."""
        return self._moment.frames

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all streams carry."""
        return self._streams.nbytes

    @property
    def attention_nbytes(self) -> int:
        """Bytes that keys and values of every frame so far would take, were each layer full attention, in fp32."""
        config = self.source.model.config
        tokens = config.grid[0] * config.grid[1]
        return 2 * 4 * len(config.stack) * tokens * config.dim * self.frames * self.streams

    @property
    def pose(self) -> NDArray[np.float64] | None:
        """x, y and yaw of the last frame, (3,) or (b, 3); None before the first, or in a world without poses."""
        pose = self._moment.pose
        return pose if pose is None else self._out(pose)

    # --- what it does --------------------------------------------------------------------------------------

    def observe(self, frames: ArrayLike, *, actions: ArrayLike | None = None, pose: ArrayLike | None = None) -> None:
        """Show it pictures uint8 (T, H, W, 3), or (b, T, H, W, 3).

        actions (T, A): action t leads into frame t; that of a stream's first frame counts as none. pose (T, 3): x, y
        and yaw; where it is needed and not given, actions say how it moves.

        Raises:
            UserError: frames of another size or kind, a context longer than the training's clips, actions or poses that
                are missing or none.
        """
        shown = self._inputs.shown(frames, self.frames)
        facts = self._inputs.actions(shown.shape[1], actions, self.frames)
        poses = self._poses(facts, pose)
        self._live(Event(facts, poses, torch.from_numpy(shown)))

    def step(self, action: Action | None = None, *, pose: ArrayLike | None = None) -> Frames:
        """The next picture uint8 (H, W, 3), or (b, H, W, 3), which it then remembers.

        action: a name or numbers; none: nothing is done. pose: where the next picture is taken from; where it is needed
        and not given, the action says how it moves.

        Raises:
            UserError: an action that is none of the space, a pose that is none or is missing.
        """
        output = self._live(self.next_event(action, pose))
        assert output is not None
        return self.pictures(output)

    def forget(self) -> World:
        """Lose all that is remembered; where it is stays known. Returns itself."""
        empty = np.zeros((self.streams, 0, self.controls.width), np.float32)
        self._live(Event(empty, None))
        return self

    def fork(self, n: int) -> World:
        """`n` futures of each stream side by side, alike until they are led apart: stream s has s·n to s·n + n - 1.

        Raises:
            UserError: fewer than one.
        """
        if n < 1:
            raise UserError(f"fork: {n} futures; at least one")
        return self.of_streams([stream for stream in range(self.streams) for _ in range(n)])

    def of_streams(self, chosen: Sequence[int]) -> World:
        """A world of some of the streams, in that order; a stream may be named twice. This one stays as it is."""
        picked = tuple(chosen)
        if not picked or not all(0 <= stream < self.streams for stream in picked):
            raise UserError(f"streams: {list(picked)}; there are 0 to {self.streams - 1}")
        history = self._history.forked(self._moment, picked)
        streams = self._streams.with_state(history.start.state)
        return World(self.source, streams, history.start, history, single=False, beyond=self._beyond)

    def fresh(self, seeds: Sequence[int]) -> World:
        """A world of the same model in which nothing has been seen, a stream per seed."""
        streams = Streams(self.source.model, self.source.tokenizer, self.sampler, seeds)
        moment = Moment(streams.state)
        history = History(moment, self.controls.width, self._history.states)
        return World(self.source, streams, moment, history, single=False, beyond=self._beyond)

    @staticmethod
    def side_by_side(worlds: Sequence[World]) -> World:
        """The streams of worlds of one model as one world, whatever the age of each; it can go back to now, not before.

        Raises:
            UserError: they remember unlike numbers of frames, as full attention does, or some remember and some do not.
        """
        first = worlds[0]
        moment = Moment.side_by_side([world._moment for world in worlds])
        history = History(moment, first.controls.width, first._history.states)
        streams = first._streams.with_state(moment.state)
        return World(first.source, streams, moment, history, single=False, beyond=first._beyond)

    def streams_apart(self) -> list[World]:
        """A world for each stream, whose arrays have no axis of streams."""
        worlds = [self.of_streams([stream]) for stream in range(self.streams)]
        for world in worlds:
            world._single = True
        return worlds

    def rewind(self, k: int) -> World:
        """Go back by `k` frames, to the bits that were; returns itself.

        Raises:
            UserError: more frames than there are, or a part of a step.
        """
        if k and not self._history.states:
            raise UserError("rewind: this world was told to keep nothing to go back to (states=0)")
        if not 0 <= k <= self.frames:
            raise UserError(f"rewind: {k} frames; there are {self.frames}")
        if self.frames - k < self._history.earliest:
            raise UserError(f"rewind: {k} frames; what was before frame {self._history.earliest} was not saved with it")
        if k % self.frames_per_step:
            raise UserError(f"rewind: {k} frames; a step makes {self.frames_per_step}")
        if k:
            self._history, moment, events = self._history.before(self.frames - k)
            self._moment, self._streams = moment, self._streams.with_state(moment.state)
            for event in events:
                self._live(event)
        return self

    def copy(self) -> World:
        """Another one that goes on from here."""
        world = self.of_streams(range(self.streams))
        world._single = self._single
        return world

    @property
    def _inputs(self) -> Inputs:
        longest = None if self._beyond else self.trained_frames
        return Inputs(self.about, self.conditioning, self.streams, self._single, self.frames_per_step, longest)

    # --- how -----------------------------------------------------------------------------------------------

    def next_event(self, action: Action | None = None, pose: ArrayLike | None = None) -> Event:
        """What a step would be, before it happens. Raises UserError as `step` does."""
        facts = self._inputs.action(action)
        return Event(facts, self._poses(facts, pose))

    def pictures(self, output: Frames) -> Frames:
        """What a step made (b, T, H, W, 3), with the axes that `step` gives."""
        return self._out(output if self.frames_per_step > 1 else output[:, 0])

    def _live(self, event: Event) -> Frames | None:
        """Let something happen; what was made of it (b, T, H, W, 3)."""
        output = None
        if event.forgets:
            self._streams.forget()
        elif event.shown is None:
            output = self._streams.step(self.conditions(event)).cpu().numpy()
        elif self.source.model.shown_context:
            self._streams.observe(event.shown.to(conditions_device(self)), self.conditions(event))
        self._happened(event, self._streams.state)
        return output

    def lead(self, event: Event, state: StreamState) -> None:
        """Go on from the state that an event has led to, made elsewhere: in a batch with other worlds."""
        self._streams = self._streams.with_state(state)
        self._happened(event, state)

    def _happened(self, event: Event, state: StreamState) -> None:
        self._moment = replace(self._moment.after(event), state=state)
        self._history.add(event, self._moment)

    def conditions(self, event: Event) -> Conditions:
        """What the model is told: poses from the stream's first one, actions of every recorded step of a frame."""
        parts: dict[str, torch.Tensor] = {}
        if event.poses is not None:
            origin = self._moment.after(event).origin
            assert origin is not None
            clips = np.concatenate([origin[:, None], event.poses], 1)
            parts["pose"] = torch.from_numpy(np.stack([relative_pose(clip)[1:] for clip in clips]))
        parts["actions"] = torch.from_numpy(np.tile(event.actions, self.about.stride))
        return Conditions(**parts).to(conditions_device(self))

    def _poses(self, actions: NDArray[np.float32], pose: ArrayLike | None) -> NDArray[np.float64] | None:
        """Poses (b, T, 3) of the frames that actions (b, T, A) lead into; None in a world without."""
        return self._driven(actions) if pose is None else self._inputs.poses(actions.shape[1], pose)

    def _driven(self, actions: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Where actions lead from the last pose; None where poses are neither known nor needed."""
        motion, moment = self.controls.motion, self._moment
        if motion is None:
            if self.conditioning != "actions":
                raise UserError("pose: missing; this model is told poses, and how actions move them is not known")
            return None
        b = len(actions)
        pose = np.zeros((b, 3)) if moment.pose is None else moment.pose
        before = pose if moment.before is None else moment.before
        results = []
        for t in range(actions.shape[1]):
            for _ in range(0 if moment.pose is None and t == 0 else self.about.stride):
                before, pose = pose, motion.moved(before, pose, actions[:, t])
            results.append(pose)
        return np.stack(results, 1)

    def _out(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[0] if self._single else values

    @property
    def memory(self) -> Memory | None:
        """What is remembered, as the model has it."""
        return self._streams.memory

    @property
    def moment(self) -> Moment:
        """What it goes on from: a value."""
        return self._moment

    def streams_of(self, state: StreamState) -> Streams:
        """Streams of its model, in a state."""
        return self._streams.with_state(state)


def conditions_device(world: World) -> torch.device:
    """Where a world's model is."""
    return next(world.source.model.parameters()).device
