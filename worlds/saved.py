"""A world as one file: safetensors, with where its model is from in the header. Nothing in it can run code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.models.config import SamplerConfig
from longtake.models.memory import Memory
from longtake.models.streams import StreamState
from longtake.storage.store import TEMPORARY
from longtake.worlds.history import Event, History, Moment
from longtake.worlds.source import WorldSource, open_source

FORMAT = "longtake world 1"
POSES = ("origin", "before", "pose")


@dataclass(frozen=True)
class SavedWorld:
    """All that a world goes on from; the last two are its arguments of those names."""

    source: WorldSource
    sampler: SamplerConfig
    now: Moment
    history: History
    single: bool
    beyond: bool


def write(world: SavedWorld, path: Path) -> None:
    """Into one file, there at once or not at all."""
    half = path.with_name(f"{TEMPORARY}{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(packed(world))
    os.replace(half, path)


def packed(world: SavedWorld) -> bytes:
    """What a saved world's file holds."""
    from safetensors.torch import save

    history = world.history
    events = history.events(0)
    tensors = _of_moment("start", history.start) | _of_moment("now", world.now)
    tensors |= {f"event.{n}.{name}": part for n, event in enumerate(events) for name, part in _of_event(event).items()}
    facts = {
        "format": FORMAT,
        "name": world.source.name,
        "store": world.source.store,
        "step": world.source.step,
        "weights": world.source.weights,
        "sampler": world.sampler.model_dump(mode="json"),
        "events": len(events),
        "frames": [history.start.frames, world.now.frames],
        "states": history.states,
        "single": world.single,
        "beyond": world.beyond,
    }
    # Before anything has happened `start` is `now`, and a file holds no tensor twice.
    apart = {name: part.clone(memory_format=torch.contiguous_format) for name, part in tensors.items()}
    return save(apart, {"longtake": json.dumps(facts)})


def read(path: Path, name: str | None, store: str | None, device: str) -> SavedWorld:
    """The world in a file. Raises UserError."""

    def source_of(facts: Mapping[str, Any]) -> WorldSource:
        return open_source(name or facts["name"], store or facts["store"], None if name else facts["step"], device)

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    return unpacked(data, str(path), source_of, device)


def unpacked(data: bytes, place: str, source_of: Callable[[Mapping[str, Any]], WorldSource], device: str) -> SavedWorld:
    """The world in the bytes of its file, which is at `place`; its model is what `source_of` its facts gives.

    Raises:
        UserError: damaged, of another version, or of other weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"{place}: damaged, or no saved world: {error}") from None
    facts = _facts(data)
    if facts.get("format") != FORMAT:
        raise UserError(f"{place}: no saved world of this version")
    source = source_of(facts)
    if source.weights != facts["weights"]:
        raise UserError(f"{place}: saved with other weights than those of {source.name}")
    start, now = (
        _read_moment(tensors, part, frames, device)
        for part, frames in zip(("start", "now"), facts["frames"], strict=True)
    )
    history = _history(tensors, facts, start, now, source.about.controls.width)
    return SavedWorld(source, SamplerConfig(**facts["sampler"]), now, history, facts["single"], facts["beyond"])


def _facts(data: bytes) -> dict[str, Any]:
    """What the header says beside the tensors: it is JSON, after its length in eight bytes."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("longtake", "{}"))
    return facts


def _history(tensors: dict[str, Tensor], facts: dict[str, Any], start: Moment, now: Moment, width: int) -> History:
    history = History(start, width, facts["states"])
    for number in range(facts["events"]):
        history.record(_read_event(tensors, number))
    history.keep_now(now)
    return history


def _of_moment(part: str, moment: Moment) -> dict[str, Tensor]:
    results = {f"{part}.noise.{n}": noise for n, noise in enumerate(moment.state.noise)}
    if moment.state.memory is not None:
        results |= {f"{part}.memory.{name}": values for name, values in moment.state.memory.to_dict().items()}
    poses = {name: getattr(moment, name) for name in POSES}
    return results | {f"{part}.{name}": torch.from_numpy(pose) for name, pose in poses.items() if pose is not None}


def _read_moment(tensors: dict[str, Tensor], part: str, frames: int, device: str) -> Moment:
    def under(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): values for key, values in tensors.items() if key.startswith(name)}

    memory, noise = under(f"{part}.memory."), under(f"{part}.noise.")
    kept = Memory.from_dict(memory).map(lambda values: values.to(device)) if memory else None
    state = StreamState(kept, tuple(noise[str(number)] for number in range(len(noise))))
    origin, before, pose = (
        tensors[f"{part}.{name}"].numpy() if f"{part}.{name}" in tensors else None for name in POSES
    )
    return Moment(state, frames, origin, before, pose)


def _of_event(event: Event) -> dict[str, Tensor]:
    results = {"actions": torch.from_numpy(np.ascontiguousarray(event.actions))}
    if event.poses is not None:
        results["poses"] = torch.from_numpy(np.ascontiguousarray(event.poses))
    return results if event.shown is None else results | {"shown": event.shown.cpu()}


def _read_event(tensors: dict[str, Tensor], number: int) -> Event:
    actions, poses, shown = (tensors.get(f"event.{number}.{name}") for name in ("actions", "poses", "shown"))
    assert actions is not None
    return Event(actions.numpy(), None if poses is None else poses.numpy(), shown)
