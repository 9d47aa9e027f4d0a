"""A world as one file: safetensors, with where its model is from in the header. Nothing in it can run code."""

from __future__ import annotations

import hashlib
import json
import os
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
from longtake.models.world_model import WorldModel
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
    from safetensors.torch import save_file

    history = world.history
    events = history.events(0)
    tensors = _of_moment("start", history.start) | _of_moment("now", world.now)
    tensors |= {f"event.{n}.{name}": part for n, event in enumerate(events) for name, part in _of_event(event).items()}
    facts = {
        "format": FORMAT,
        "name": world.source.name,
        "store": world.source.store,
        "step": world.source.step,
        "weights": weights_digest(world.source.model),
        "sampler": world.sampler.model_dump(mode="json"),
        "events": len(events),
        "frames": [history.start.frames, world.now.frames],
        "states": history.states,
        "single": world.single,
        "beyond": world.beyond,
    }
    half = path.with_name(f"{TEMPORARY}{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in tensors.items()}, half, {"longtake": json.dumps(facts)})
    os.replace(half, path)


def read(path: Path, name: str | None, store: str | None, device: str) -> SavedWorld:
    """The world in a file. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("longtake", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or no saved world: {error}") from None
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: no saved world of this version")
    source = open_source(name or facts["name"], store or facts["store"], None if name else facts["step"], device)
    if weights_digest(source.model) != facts["weights"]:
        raise UserError(f"{path}: saved with other weights than those of {source.name}")
    start, now = (
        _read_moment(tensors, part, frames, device)
        for part, frames in zip(("start", "now"), facts["frames"], strict=True)
    )
    history = _history(tensors, facts, start, now, source.about.controls.width)
    return SavedWorld(source, SamplerConfig(**facts["sampler"]), now, history, facts["single"], facts["beyond"])


def _history(tensors: dict[str, Tensor], facts: dict[str, Any], start: Moment, now: Moment, width: int) -> History:
    history = History(start, width, facts["states"])
    for number in range(facts["events"]):
        history.record(_read_event(tensors, number))
    history.keep_now(now)
    return history


def weights_digest(model: WorldModel) -> str:
    """SHA-256 of a model's weights, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


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
