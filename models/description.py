"""What a folder of weights says of itself, as one value: the `config.json` beside them, written and read here alone.

A world model's says how it was trained, an autoencoder's its shape; an exported one also where it is from. Works
without torch. Diffusers' AutoencoderKL has a config.json of its own, of which we read what a tokenizer needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longtake.models.config import AutoencoderConfig, ModelConfig
from longtake.models.normalisation import Normalisation

CONFIG = "config.json"
PIXELS = "pixels"
"""The kind of the tokenizer that leaves frames as they are."""

Positive = Annotated[int, Field(ge=1)]


class Origin(BaseModel):
    """The checkpoint that a folder was exported from."""

    model_config = ConfigDict(frozen=True)

    run: str
    name: str
    dataset_name: str
    code_version: str
    step: int


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True)

    origin: Origin | None = Field(None, alias="from")

    def exported(self, origin: Origin) -> Self:
        """The same, with where it is from."""
        return self.model_copy(update={"origin": origin})

    def write(self, folder: Path) -> None:
        """Write it beside the weights of a folder."""
        written = self.model_dump(mode="json", exclude={"origin"})
        if written.get("world", ...) is None:
            del written["world"]
        if self.origin is not None:
            written["from"] = self.origin.model_dump(mode="json")
        (folder / CONFIG).write_text(json.dumps(written, indent=1))


class WorldModelDescription(_Description):
    """A world model and what its training showed it."""

    model: ModelConfig
    trained_frames: Positive
    """Frames of the longest clips that it was trained on."""
    tokenizer: str
    """The kind of what stands between frames and the model."""
    stride: Positive = 1
    """Source frames from one frame of those clips to the next; checkpoints that do not say took every one."""
    shown_context: bool = True
    """Whether any clip had frames before those that were asked; checkpoints that do not say had some."""
    normalisation: Normalisation = Field(Normalisation(), exclude_if=lambda value: value == Normalisation())
    """How the model is told what was recorded; checkpoints that do not say are told it as it is."""

    world: dict[str, Any] | None = None
    """Of an exported one: what its worlds are told, see `longtake.worlds.about.About`."""

    @property
    def on_latents(self) -> bool:
        """Whether it lives on latents of an autoencoder."""
        return self.tokenizer != PIXELS


class AutoencoderDescription(_Description):
    """An autoencoder of single frames."""

    model: AutoencoderConfig


Description = WorldModelDescription | AutoencoderDescription


class DiffusersConfig(BaseModel):
    """What we need of the config.json of diffusers' AutoencoderKL."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    in_channels: Positive
    latent_channels: Positive
    block_out_channels: Annotated[list[Positive], Field(min_length=1)]
    scaling_factor: float
    shift_factor: float | None = None

    def latent_shape(self, frame_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Height, width and channels of the latents of such frames (H, W, C).

        Raises:
            ValueError: sides that its halvings do not divide, or other channels.
        """
        height, width, channels = frame_shape
        downsample = 2 ** (len(self.block_out_channels) - 1)
        if height % downsample or width % downsample or channels != self.in_channels:
            raise ValueError(
                f"takes frames whose sides are multiples of {downsample}, with {self.in_channels} channels; these are "
                + " x ".join(map(str, frame_shape))
            )
        return height // downsample, width // downsample, self.latent_channels


def parse(text: str | bytes) -> Description:
    """The description that a config.json holds.

    Raises:
        ValueError: it holds none of ours; a line for all that is wrong with it.
    """
    kind = _kind(_loaded(text))
    kinds: dict[str | None, type[WorldModelDescription] | type[AutoencoderDescription]] = {
        "world_model": WorldModelDescription,
        "autoencoder": AutoencoderDescription,
    }
    if kind not in kinds:
        raise ValueError(f"holds {kind or 'no model'}, expected world_model or autoencoder")
    try:
        return kinds[kind].model_validate_json(text)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError("; ".join(lines)) from error


def read(folder: Path) -> Description:
    """The description in a folder. Raises FileNotFoundError, and ValueError as `parse` does, with the file's name."""
    try:
        return parse((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def read_world_model(folder: Path) -> WorldModelDescription:
    """The same, of a world model. Raises ValueError for an autoencoder's too."""
    described = read(folder)
    if not isinstance(described, WorldModelDescription):
        raise ValueError(f"{folder / CONFIG}: holds an autoencoder, expected a world model")
    return described


def parse_tokenizer(text: str | bytes) -> AutoencoderConfig | DiffusersConfig:
    """The tokenizer that a config.json describes: an autoencoder of ours, or diffusers' AutoencoderKL.

    Raises:
        ValueError: it is neither, or something in it is wrong.
    """
    written = _loaded(text)
    if written.get("_class_name") == "AutoencoderKL":
        return DiffusersConfig.model_validate(written)
    if (kind := _kind(written)) != "autoencoder":
        raise ValueError(
            f"holds {kind or 'something else'}, expected an autoencoder of ours or diffusers' AutoencoderKL"
        )
    described = parse(text)
    assert isinstance(described, AutoencoderDescription)
    return described.model


def says_origin(folder: Path) -> bool:
    """Whether a folder's config.json, of whatever kind, says where it was exported from."""
    return "from" in _loaded((folder / CONFIG).read_bytes())


def _loaded(text: str | bytes) -> dict[str, Any]:
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged, it is no JSON: {error}") from error
    if not isinstance(written, dict):
        raise ValueError(f"holds a {type(written).__name__}, expected an object")
    return written


def _kind(written: dict[str, Any]) -> str | None:
    """What is described; world models of earlier versions did not say so."""
    model = written.get("model")
    return str(model.get("kind", "world_model")) if isinstance(model, dict) else None
