"""Which tokenizer a training asks for: pixels, an autoencoder by its run's id or name, a folder, or a dataset's own.

Everything but `read`, `of_dataset` and `of_training` works without torch, for the driver's checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.datasets.dataset import TOKENIZER, tokenizer_digest
from longtake.errors import UserError
from longtake.jobs.train.config import DATASET
from longtake.models.description import CONFIG, PIXELS, parse_tokenizer
from longtake.models.exported import WEIGHTS, require_sums
from longtake.storage import scratch
from longtake.storage.store import Store
from longtake.tables.find import AUTOENCODERS, find_run, is_path
from longtake.training import checkpoints

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.jobs.train.config import WorldModelTraining
    from longtake.models.tokenizer import Tokenizer
    from longtake.training.context import Context


def resolve(store: Store, named: str) -> str:
    """The same tokenizer by its run's id: a name may mean another run tomorrow.

    Raises:
        UserError: no such autoencoder, or one without a checkpoint.
    """
    if named in (PIXELS, DATASET) or is_path(named):
        return named
    others = (PIXELS, DATASET, "a folder's path")
    run = str(find_run(store, named, AUTOENCODERS, what="tokenizer", others=others)["run"])
    if checkpoints.newest(store, run) is None:
        raise UserError(f"tokenizer: autoencoder {named} (run {run}) has no checkpoint, or none that is whole")
    return run


@contextmanager
def opened(store: Store, named: str) -> Iterator[Path]:
    """The folder of an autoencoder, to read.

    Raises:
        UserError: no such autoencoder or folder.
    """
    if is_path(named):
        folder = Path(named).expanduser()
        if not (folder / CONFIG).is_file():
            raise UserError(f"tokenizer: {named} is no folder with a config.json")
        try:
            require_sums(folder)
        except ValueError as error:
            raise UserError(f"tokenizer: {error}") from error
        yield folder
        return
    run = resolve(store, named)
    step = checkpoints.newest(store, run)
    assert step is not None
    with checkpoints.opened(store, run, step, (WEIGHTS, CONFIG)) as folder:
        yield folder


def latent_shape(store: Store, named: str, dataset: Data) -> tuple[int, int, int]:
    """Height, width and channels of an autoencoder's latents of a dataset's frames.

    Raises:
        UserError: no such autoencoder, or one that does not fit the frames.
    """
    with opened(store, named) as folder:
        try:
            return parse_tokenizer((folder / CONFIG).read_bytes()).latent_shape(dataset.frame_shape)
        except ValueError as error:
            raise UserError(f"tokenizer: {named} {error} (dataset {dataset.name})") from error


def of_training(context: Context, config: WorldModelTraining, checkpoint: Path | None) -> Tokenizer:
    """The tokenizer of a training: what its checkpoint carries, or what its config names at the start."""
    from longtake.models.checkpoint import load_model_tokenizer
    from longtake.models.tokenizer import PixelTokenizer

    if checkpoint is not None:
        return load_model_tokenizer(checkpoint, context.device)
    if config.tokenizer == PIXELS:
        return PixelTokenizer()
    if config.tokenizer == DATASET:
        return of_dataset(context.store, config.data.first, context.device)
    return read(context.store, config.tokenizer, context.device)


def of_dataset(store: Store, name: str, device: str = "cpu") -> Tokenizer:
    """What encoded a dataset of latents: its own copy.

    Raises:
        UserError: it is gone, damaged, or another than encoded them.
    """
    latents = store.dataset(name).manifest.latents
    assert latents is not None
    return kept(store, name, latents.weights, device)


def kept(store: Store, name: str, digest: str, device: str = "cpu") -> Tokenizer:
    """The copy that lies with a dataset, also with one that is not finished; `digest` is that of its files.

    Raises:
        UserError: it is gone, damaged, or another.
    """
    where = f"datasets/{name}/{TOKENIZER}"
    with scratch.folder() as folder:
        try:
            store.download_dir(where, folder)
        except FileNotFoundError:
            raise UserError(f"{where}: the tokenizer is gone; encode the dataset again") from None
        if tokenizer_digest(files_of(folder)) != digest:
            raise UserError(
                f"{where}: damaged, or another tokenizer than made these latents: bring it back as it was, or encode "
                "the dataset again under another name"
            )
        return _loaded(folder, where, device)


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of a tokenizer's files by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(store: Store, named: str, device: str = "cpu") -> Tokenizer:
    """An autoencoder by its run's id or name, or a folder.

    Raises:
        UserError: there is none, it is damaged, or a package that it needs is missing.
    """
    with opened(store, named) as folder:
        return _loaded(folder, named, device)


def _loaded(folder: Path, named: str, device: str) -> Tokenizer:
    from longtake.models.tokenizer import load_tokenizer

    try:
        return load_tokenizer(folder, device)
    except (ValueError, OSError) as error:
        raise UserError(f"tokenizer: {named}: {error}") from error
