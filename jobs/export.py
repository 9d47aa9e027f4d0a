"""`longtake export RUN FOLDER`: a checkpoint as what others can load: weights in one file, and the config beside it.

    model.safetensors   weights, fp32, by parameter name
    config.json         the model's config, and the run and step that it is from
    tokenizer/          where a world model lives on latents: its autoencoder, whole
    SHA256SUMS          of these files, for `sha256sum --check`

`longtake.models.checkpoint.load_model` reads it with no Ray and no DeepSpeed; `init.run: FOLDER` begins a training with
it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.jobs.runs import find
from longtake.models import description
from longtake.models.exported import MODEL, TOKENIZER, WEIGHTS, write_sums
from longtake.storage.store import Store, open_store
from longtake.training import checkpoints


def main(run: str, out: str, step: int | None, store: str) -> None:
    """The command: write the folder and say what can be done with it."""
    where = open_store(store, check=True)
    row = find.find_run(where, run)
    step = checkpoint_of(where, row["run"], step)
    export(where, row, step, Path(out))
    print(f"{out}: {row['name']}, run {row['run']}, step {step}; train on from it with --set init.run={_as_path(out)}")


def checkpoint_of(store: Store, run: str, step: int | None) -> int:
    """The step of a run's checkpoint: the one asked for, else the newest that is whole.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if step is None:
        return checkpoints.require_newest(store, run)
    steps = checkpoints.complete(store, run)
    if step not in steps:
        raise UserError(f"run {run} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}")
    if problems := checkpoints.damage(store, run, step):
        raise UserError(*(f"damaged checkpoint: {line}" for line in problems))
    return step


def export(store: Store, row: dict[str, Any], step: int, out: Path) -> None:
    """Copy what a reader needs of a checkpoint into a new folder.

    Raises:
        UserError: something else is there already, or the checkpoint is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder")
    with checkpoints.opened(store, row["run"], step, MODEL) as folder:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / WEIGHTS, out / WEIGHTS)
        if (folder / TOKENIZER).is_dir():
            shutil.copytree(folder / TOKENIZER, out / TOKENIZER)
        described = description.read(folder)
    origin = {name: row[name] for name in ("run", "name", "dataset_name", "code_version")}
    described.exported(description.Origin(**origin, step=step)).write(out)
    write_sums(out)


def _as_path(out: str) -> str:
    """How a folder is told from a run: by the slash in it."""
    return out if find.is_path(out) else f"./{out}"
