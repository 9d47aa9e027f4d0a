"""Where a world comes from: a run in a store, an exported folder, or a repository of the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from longtake.errors import UserError
from longtake.models import description
from longtake.models.checkpoint import load_model, load_model_tokenizer
from longtake.models.description import CONFIG, WorldModelDescription
from longtake.models.exported import MODEL
from longtake.models.normalisation import Normalisation
from longtake.models.tokenizer import Tokenizer
from longtake.models.world_model import WorldModel
from longtake.storage.store import open_store
from longtake.tables.find import WORLD_MODELS, find_run
from longtake.training import checkpoints
from longtake.training.checkpoints import checkpoint_of
from longtake.worlds.about import About

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""A repository of the hub, OWNER/NAME or OWNER/NAME@REVISION."""


@dataclass(frozen=True)
class WorldSource:
    """A model ready to be played. `name`, `store` and `step` say where it is from, so that it can be found again."""

    model: WorldModel
    tokenizer: Tokenizer
    about: About
    name: str
    store: str
    step: int | None

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the model's weights, by name."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def open_source(name: str, store: str, step: int | None, device: str) -> WorldSource:
    """Load a run by its id or name (or `latest`), an exported folder, or a repository of the hub.

    Raises:
        UserError: there is none of that name; its model cannot go on from a context, or lacks what a world needs.
    """
    if (Path(name) / CONFIG).is_file():
        return _from_folder(Path(name), name, store, device)
    if HUB.fullmatch(name):
        return _from_folder(_from_hub(name), name, store, device)
    if "/" in name:
        raise UserError(f"{name}: no {CONFIG} in it; name an exported folder, OWNER/NAME of the hub, or a run")
    return _from_run(name, store, step, device)


def _from_run(run: str, uri: str, step: int | None, device: str) -> WorldSource:
    store = open_store(uri)
    row = find_run(store, run, WORLD_MODELS)
    run, step = str(row["run"]), checkpoint_of(store, str(row["run"]), step)
    with checkpoints.opened(store, run, step, MODEL) as folder:
        described = _world_model(folder, f"run {run}")
        about = About.of(store.dataset(str(row["dataset_name"])), str(row["name"]), described.stride)
        model, tokenizer = _loaded(folder, device)
    return WorldSource(model, tokenizer, about, run, uri, step)


def _from_folder(folder: Path, name: str, store: str, device: str) -> WorldSource:
    with _told(name):
        described = _world_model(folder, name)
        if described.world is None:
            raise UserError(f"{name}: exported by an earlier version, which did not say what its actions are: again")
        about = About.model_validate_json(json.dumps(described.world))
        model, tokenizer = _loaded(folder, device)
    return WorldSource(model, tokenizer, about, name, store, None)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What a folder lacks, or what is damaged in it, is the user's to mend."""
    try:
        yield
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{name}: {error}") from error


def _loaded(folder: Path, device: str) -> tuple[WorldModel, Tokenizer]:
    return load_model(folder).to(device), load_model_tokenizer(folder, device)


def _world_model(folder: Path, name: str) -> WorldModelDescription:
    described = description.read(folder)
    if not isinstance(described, WorldModelDescription):
        raise UserError(f"{name}: it is a tokenizer; a world is played in a world model")
    if not described.model.causal:
        raise UserError(f"{name}: its model is not causal (causal: false): it cannot go on from a context")
    model = described.model
    if not isinstance(model.conditions, str) or model.pose != "planar" or described.normalisation != Normalisation():
        raise UserError(
            f"{name}: is told {', '.join(model.condition_kinds)} in the scale of its data; a world takes poses in the "
            "plane and actions as they were recorded"
        )
    return described


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name}: a repository of the hub needs huggingface_hub: pip install 'longtake[hub]'") from None
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{name}: the hub does not give it: {type(error).__name__}: {error}") from error
