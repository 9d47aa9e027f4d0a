"""The weights that a training begins with: those of another run, of an exported folder, or of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.config import differences
from longtake.errors import UserError
from longtake.jobs.train.config import AutoencoderTraining, InitConfig, TrainConfig, WorldModelTraining
from longtake.models import description
from longtake.models.description import CONFIG
from longtake.models.exported import WEIGHTS, load_weights, require_sums
from longtake.tables.find import find_run, is_path
from longtake.training import checkpoints
from longtake.training.checkpoints import checkpoint_of

if TYPE_CHECKING:
    from torch import nn

    from longtake.storage.store import Store


def resolve(store: Store, init: InitConfig) -> InitConfig:
    """The same weights by the run's id and step: the newest ones may be others tomorrow.

    Raises:
        UserError: no such run or checkpoint.
    """
    if init.run is None or is_path(init.run):
        return init
    run = find_run(store, init.run)["run"]
    return init.model_copy(update={"run": run, "step": checkpoint_of(store, run, init.step)})


def problems(config: TrainConfig, store: Store) -> list[str]:
    """Why a training cannot begin with the weights that its config names."""
    init = config.init
    if init is None:
        return []
    try:
        if init.mamba2_lm is not None:
            return _problems_of_language_model(config, init.mamba2_lm)
        with _opened(store, init) as folder:
            return [f"init.run: {line}" for line in shape_mismatches(config, folder)]
    except UserError as error:
        return [f"init: {line}" for line in error.lines]


def shape_mismatches(config: TrainConfig, folder: Path) -> list[str]:
    """Why a checkpoint's weights are none for the model of a config; names and shapes only are compared."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no dict
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: damaged, or no safetensors: {error}") from error
    needed = {name: list(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    if stored == needed:
        return []
    try:
        written = description.read(folder).model.model_dump(mode="json")
    except ValueError as error:
        raise UserError(str(error)) from error
    changes = differences(written, config.model.model_dump(mode="json"), "model")
    return [f"its weights do not fit this model: {line}" for line in changes]


def meta_model(config: TrainConfig) -> nn.Module:
    """The model of a training without its weights: names and shapes only."""
    import torch

    with torch.device("meta"):
        return new_model(config)


def new_model(config: TrainConfig) -> nn.Module:
    """The model of a training with fresh weights, drawn from torch's seed."""
    from longtake.models.autoencoder import Autoencoder
    from longtake.models.world_model import WorldModel

    if isinstance(config, AutoencoderTraining):
        return Autoencoder(config.model)
    assert isinstance(config, WorldModelTraining)
    return WorldModel(config.model)


def fill(model: nn.Module, config: TrainConfig, store: Store) -> None:
    """Give a fresh model the weights that its config names; without any it keeps its own."""
    init = config.init
    if init is None:
        return
    if init.mamba2_lm is not None:
        from longtake.models.mamba2_import import initialise_from_mamba2
        from longtake.models.world_model import WorldModel

        assert isinstance(model, WorldModel)
        initialise_from_mamba2(model, Path(init.mamba2_lm))
        return
    with _opened(store, init) as folder:
        model.load_state_dict(load_weights(folder / WEIGHTS))


def _problems_of_language_model(config: TrainConfig, path: str) -> list[str]:
    from longtake.models.mamba2_import import check_mamba2

    if not isinstance(config, WorldModelTraining):
        return ["init.mamba2_lm: an autoencoder has no mixers to fill"]
    try:
        check_mamba2(config.model, Path(path))
    except (FileNotFoundError, ValueError) as error:
        return [f"init.mamba2_lm: {line}" for line in error.args]
    return []


@contextmanager
def _opened(store: Store, init: InitConfig) -> Iterator[Path]:
    assert init.run is not None
    if not is_path(init.run):
        run = find_run(store, init.run)["run"]
        with checkpoints.opened(store, run, checkpoint_of(store, run, init.step), (WEIGHTS, CONFIG)) as folder:
            yield folder
        return
    folder = Path(init.run).expanduser()
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{init.run} has no {' and no '.join(missing)}: `longtake export` writes such a folder")
    try:
        require_sums(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    yield folder
