"""`longtake export RUN FOLDER`: a checkpoint as what others can load: weights in one file, and the config beside it.

    model.safetensors   weights, fp32, by parameter name
    config.json         the model's config, what its worlds are told (actions, keys, fps), and the run and step
    README.md           the model card: data, recipe, scores with their protocols, floors, licence
    tokenizer/          where a world model lives on latents: its autoencoder, whole
    SHA256SUMS          of these files, for `sha256sum --check`

`longtake.World.load(FOLDER)` plays it and `longtake.models.checkpoint.load_model` reads it with no Ray and no
DeepSpeed; `init.run: FOLDER` begins a training with it; `--push OWNER/NAME` uploads it to the hub.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.jobs.export import card, hub
from longtake.models import description
from longtake.models.exported import MODEL, TOKENIZER, WEIGHTS, write_sums
from longtake.storage import scratch
from longtake.storage.store import Store, open_store
from longtake.tables import find
from longtake.training import checkpoints
from longtake.training.checkpoints import checkpoint_of
from longtake.worlds.about import About, as_json


def main(run: str, out: str, step: int | None, store: str, license: str = "mit", push: str | None = None) -> None:
    """The command: write the folder, upload it where that is asked, and say what can be done with it."""
    if push is not None:
        hub.require(push)
    where = open_store(store)
    where.require_exists()
    row = find.find_run(where, run)
    step = checkpoint_of(where, row["run"], step)
    export(where, row, step, Path(out), license)
    if push is not None:
        print(f"{push}: {hub.push(Path(out), push)}; play it with longtake.World.load({push!r})")
    print(f"{out}: {row['name']}, run {row['run']}, step {step}; train on from it with --set init.run={_as_path(out)}")


def export(store: Store, row: dict[str, Any], step: int, out: Path, license: str = "mit") -> None:
    """Copy what a reader needs of a checkpoint into a new folder, with its card.

    Raises:
        UserError: something else is there already, or the checkpoint is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder")
    origin = {name: row[name] for name in ("run", "name", "dataset_name", "code_version")}
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        checkpoints.opened(store, row["run"], step, MODEL) as folder,
        scratch.folder(out.resolve().parent, f".{out.name}-") as whole,
    ):
        described = description.read(folder)
        if isinstance(described, description.WorldModelDescription):
            described = described.model_copy(update={"world": _about(store, row, described)})
        target = whole / out.name
        target.mkdir()
        shutil.copyfile(folder / WEIGHTS, target / WEIGHTS)
        if (folder / TOKENIZER).is_dir():
            shutil.copytree(folder / TOKENIZER, target / TOKENIZER)
        described.exported(description.Origin(**origin, step=step)).write(target)
        (target / card.CARD).write_text(card.text(store, row, step, license))
        write_sums(target)
        target.rename(out.resolve())  # whole, or not at all


def _about(store: Store, row: dict[str, Any], facts: description.WorldModelDescription) -> dict[str, Any]:
    """What its worlds are told. Raises UserError where the dataset is gone: nobody else knows it."""
    dataset = store.dataset(str(row["dataset_name"]))
    return as_json(About.of(dataset, str(row["name"]), facts.stride))


def _as_path(out: str) -> str:
    """How a folder is told from a run: by the slash in it."""
    return out if find.is_path(out) else f"./{out}"
