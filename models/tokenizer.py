"""Frames ↔ what the model sees: pixels in [-1, 1], or the latents of an autoencoder, ours or diffusers'.

Letters: b clips, t frames, H·W pixels, C channels of a frame; c·h·w numbers that the model sees of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from longtake.models import description
from longtake.models.autoencoder import Autoencoder
from longtake.models.config import AutoencoderConfig
from longtake.models.description import CONFIG, AutoencoderDescription, DiffusersConfig, parse_tokenizer
from longtake.models.exported import WEIGHTS, load_weights

PIECE = 2**19
"""Pixels that an autoencoder is given at once, so that long clips cost no more memory than short ones."""
INSTALL_DIFFUSERS = 'pip install "longtake[vae]"'


class Tokenizer(Protocol):
    """The face of everything that stands between frames and a model."""

    kind: str

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (b, t, H, W, C) → floats (b, t, c, h, w) on the same device, without gradient."""

    def decode(self, x: Tensor) -> Tensor:
        """Floats (b, t, c, h, w) → uint8 frames (b, t, H, W, C), clipped and rounded."""

    def save(self, folder: Path) -> None:
        """Write all that `load_tokenizer` needs; nothing for pixels."""


class PixelTokenizer:
    """Pixels as floats in [-1, 1]: c·h·w is C·H·W."""

    kind = description.PIXELS

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (b, t, H, W, C) → floats (b, t, C, H, W) in [-1, 1]."""
        return rearrange(frames, "b t H W C -> b t C H W").float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Floats (b, t, C, H, W) → uint8 frames (b, t, H, W, C), clipped and rounded."""
        pixels = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(pixels, "b t C H W -> b t H W C")

    def save(self, folder: Path) -> None:
        """Nothing to write."""


PIXELS = PixelTokenizer()


class AutoencoderTokenizer:
    """Latents of an autoencoder of ours, with mean 0 and variance 1."""

    kind = "autoencoder"

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (b, t, H, W, C) → latents (b, t, c, h, w)."""
        return _in_pieces(self.autoencoder.encode, PIXELS.encode(frames), pixels=frames[0, 0, ..., 0].numel())

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Latents (b, t, c, h, w) → uint8 frames (b, t, H, W, C)."""
        config = self.autoencoder.config
        return PIXELS.decode(_in_pieces(self.autoencoder.decode, x, pixels=config.height * config.width))

    def save(self, folder: Path) -> None:
        """Its weights and its config."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.autoencoder.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        AutoencoderDescription(model=self.autoencoder.config).write(folder)


class DiffusersTokenizer:
    """Latents of diffusers' AutoencoderKL, shifted and scaled as its config says."""

    kind = "diffusers"

    def __init__(self, autoencoder: Any, config: DiffusersConfig) -> None:
        self.autoencoder = autoencoder
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0
        self.downsample = 2 ** (len(config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (b, t, H, W, C) → latents (b, t, c, h, w): the mode of their distribution."""

        def latents(x: Tensor) -> Tensor:
            mode: Tensor = self.autoencoder.encode(x).latent_dist.mode()
            return (mode - self.shift) * self.scale

        return _in_pieces(latents, PIXELS.encode(frames), pixels=frames[0, 0, ..., 0].numel())

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Latents (b, t, c, h, w) → uint8 frames (b, t, H, W, C)."""

        def frames(latents: Tensor) -> Tensor:
            decoded: Tensor = self.autoencoder.decode(latents / self.scale + self.shift).sample
            return decoded

        return PIXELS.decode(_in_pieces(frames, x, pixels=x[0, 0, 0].numel() * self.downsample**2))

    def save(self, folder: Path) -> None:
        """Its weights and its config, as diffusers writes them."""
        self.autoencoder.save_pretrained(folder, safe_serialization=True)


def as_latents(stored: Tensor) -> Tensor:
    """Latents as datasets keep them (b, t, h, w, c) → as models see them: floats (b, t, c, h, w)."""
    return rearrange(stored, "b t h w c -> b t c h w").float()


def load_tokenizer(folder: Path, device: str = "cpu") -> Tokenizer:
    """The autoencoder in a folder: `config.json` with `model.safetensors` (ours) or with diffusers' own files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds something else, the weights are not those of the config, or diffusers is missing.
    """
    try:
        config = parse_tokenizer((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    if isinstance(config, DiffusersConfig):
        return DiffusersTokenizer(_load_diffusers(folder).to(device), config)
    return AutoencoderTokenizer(_load_autoencoder(folder, config).to(device))


def _load_autoencoder(folder: Path, config: AutoencoderConfig) -> Autoencoder:
    autoencoder = Autoencoder(config)
    weights = folder / WEIGHTS
    try:
        autoencoder.load_state_dict(load_weights(weights))
    except RuntimeError as error:
        raise ValueError(f"{weights}: these weights do not fit {folder / CONFIG}: {error}") from error
    return autoencoder.eval().requires_grad_(False)


def _load_diffusers(folder: Path) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            f"{folder} holds diffusers' AutoencoderKL, but diffusers is missing: {INSTALL_DIFFUSERS}"
        ) from error
    options = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    return AutoencoderKL.from_pretrained(folder, **options).requires_grad_(False)


def _in_pieces(function: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
    """A function of images (n, ...), over all frames of (b, t, ...), a few at a time; `pixels` is the size of one."""
    b = x.shape[0]
    images = rearrange(x, "b t ... -> (b t) ...")
    done = [function(piece) for piece in images.split(max(1, PIECE // pixels))]
    return rearrange(torch.cat(done), "(b t) ... -> b t ...", b=b)
