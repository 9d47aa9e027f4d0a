"""The files of a trained model as a folder, and their SHA-256s in an exported one; works without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.models.description import CONFIG, says_origin

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer"
"""The folder of the tokenizer in a checkpoint."""

MODEL = (WEIGHTS, CONFIG, TOKENIZER)
"""What is read of a checkpoint to generate with it; the rest is for going on with its training."""

SUMS = "SHA256SUMS"


def load_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError, and ValueError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged, or no safetensors: {error}") from error


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder beside them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{_sha256(folder / name)}  {name}\n" for name in names))


def require_sums(folder: Path) -> None:
    """Compare an exported folder with its SHA-256s; a folder that was not exported has none, and is taken as it is.

    Raises:
        ValueError: a file is another, or gone; or an earlier version exported it, without sums.
    """
    if not (folder / SUMS).is_file():
        if says_origin(folder):
            raise ValueError(
                f"{folder}: exported by an earlier version, without {SUMS}: export it again, or, if you trust it, run "
                f"`sha256sum {WEIGHTS} {CONFIG} > {SUMS}` in it"
            )
        return
    lines = (folder / SUMS).read_text(errors="replace").splitlines()  # what is no text is no sum of anything
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in dict.fromkeys((WEIGHTS, CONFIG, *sums)):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: is gone: export it again")
        if _sha256(folder / name) != sums.get(name):
            raise ValueError(f"{folder / name}: damaged, its SHA-256 is not that in {SUMS}: export it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
