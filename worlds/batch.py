"""Worlds of one model, each with a memory of its own, stepped in one forward pass; and how small one may be.

A matrix product of few rows rounds otherwise than one of many, so what a world makes could follow from who shares its
batch. `exact_batch` measures from which size on it does not, on the machine at hand: with `Streams.least` set to that
size a world makes the same bits alone and among others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
import torch

from longtake.errors import UserError
from longtake.models.conditions import Conditions
from longtake.models.streams import StreamState
from longtake.worlds.history import Event, Moment
from longtake.worlds.inputs import Frames
from longtake.worlds.world import World

SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 128)
"""Of batches that are measured, beside the largest and the one before it."""


def step_together(worlds: Sequence[World], events: Sequence[Event]) -> list[Frames]:
    """Let an event of `World.next_event` happen in each; the pictures that each would have from `step`.

    Raises:
        UserError: worlds that cannot go side by side, see `kind`; nothing has happened then.
    """
    joint = Moment.side_by_side([world.moment for world in worlds])
    conditions = Conditions.side_by_side([world.conditions(event) for world, event in zip(worlds, events, strict=True)])
    streams = worlds[0].streams_of(joint.state)
    output, state = streams.step(conditions).numpy(), streams.state
    stops = np.cumsum([0, *(world.streams for world in worlds)]).tolist()
    results = []
    for world, event, (start, stop) in zip(worlds, events, pairwise(stops), strict=True):
        world.lead(event, state.of_streams(range(start, stop)))
        results.append(world.pictures(output[start:stop]))
    return results


def kind(world: World) -> Hashable:
    """Worlds of one kind can go side by side: they remember, or do not, and keep the same number of frames."""
    memory = world.memory
    return None if memory is None else tuple(part.shape[1:] for part in memory.tensors)


def exact_batch(world: World, largest: int) -> int:
    """The smallest size of a batch from which on, up to `largest`, a stream's bits do not follow from who shares it.

    Measured with the model of `world`: memories after two steps, of batches that are the end of the largest one, turned
    round.

    Raises:
        UserError: there is none, since a place in the batch decides; or its streams cannot be conditions apart.
    """
    try:
        whole = _two_steps(world.fresh(list(range(largest))))
        sizes = sorted({size for size in (*SIZES, largest - 1, largest) if 0 < size <= largest})
        exact = [size for size in sizes if _agrees(world, whole, largest, size)]
    except ValueError as error:
        raise UserError(f"{world.about.name}: {error}, as a batch of sessions must") from None
    unlike = [size for size in sizes if size not in exact]
    least = min((size for size in exact if size > max(unlike, default=0)), default=None)
    if least is None:
        raise UserError(
            f"a batch of {largest}: here a stream's bits follow from its place in it; 1 serves each session alone"
        )
    return least


def _two_steps(world: World) -> StreamState:
    """From nothing, where one stands still: the second has a memory to read."""
    shape = (world.streams, *((world.frames_per_step,) if world.frames_per_step > 1 else ()), 3)
    for _ in range(2):
        world.step(pose=None if world.conditioning == "actions" else np.zeros(shape))
    return world.moment.state


def _agrees(world: World, whole: StreamState, largest: int, size: int) -> bool:
    """Whether a batch of a size makes what the whole one makes, though each stream has another place and company."""
    seeds = list(range(largest))[largest - size :][::-1]
    one, other = _two_steps(world.fresh(seeds)).memory, whole.of_streams(seeds).memory
    assert one is not None and other is not None
    return all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))
