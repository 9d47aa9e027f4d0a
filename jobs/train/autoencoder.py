"""An autoencoder in training: its loss, its held-out measures, and what its checkpoints say.

Noise on the latents is drawn from (seed, step, place in the global batch): a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.jobs.train.loss import distance_of, seeded
from longtake.jobs.train.plan import build_plan
from longtake.models.autoencoder import Autoencoder
from longtake.models.description import AutoencoderDescription
from longtake.models.losses import Distance, reconstruction_loss
from longtake.models.tokenizer import PIXELS, AutoencoderTokenizer
from longtake.streaming.clips import ClipBatch, load_clips
from longtake.streaming.plan import rank_slice

if TYPE_CHECKING:
    from longtake.datasets.mixture import Data
    from longtake.jobs.train.config import AutoencoderTraining
    from longtake.training.context import Context
    from longtake.training.engine import Engine

IDENTICAL_PSNR = 100.0
"""Of a frame that comes back as it was, so that means stay finite."""


class AutoencoderLearner:
    """See `loop.Learner`."""

    def __init__(
        self, context: Context, config: AutoencoderTraining, dataset: Data, model: Autoencoder, engine: Engine
    ) -> None:
        self._config, self._device, self._engine = config, context.device, engine
        self._distance = distance_of(config, model)
        self._validate = make_validation(context, config, dataset, model)

    def losses(self, clips: ClipBatch, step: int) -> Iterator[Tensor]:
        """The loss of this rank's frames. Raises UserError if it is not finite."""
        loss = loss_of(self._engine, self._config, self._device, step, clips, self._distance)
        if not loss.isfinite():
            raise UserError(f"step {step}: the loss is {loss.item()}; lower engine.lr")
        yield loss

    def validate(self) -> dict[str, float]:
        """See `make_validation`."""
        return self._validate()

    def save_samples(self, step: int) -> None:
        """There are none: held-out frames are measured as they come back."""

    def write(self, folder: Path) -> None:
        """The description."""
        AutoencoderDescription(model=self._config.model).write(folder)


def loss_of(
    engine: Engine,
    config: AutoencoderTraining,
    device: str,
    step: int,
    clips: ClipBatch,
    distance: Distance | None,
) -> Tensor:
    """The loss of this rank's frames."""
    frames = images_of(clips, device)
    noise = None
    if config.loss.kl:
        height, width, channels = config.model.latent
        length = clips.frames.shape[1]
        places = [slot * length + frame for slot in clips.slot.tolist() for frame in range(length)]
        draws = [torch.randn(channels, height, width, generator=seeded(config.seed, step, place)) for place in places]
        noise = torch.stack(draws).to(device)
    reconstruction, mean, log_variance = engine(frames, noise)
    weights = config.loss
    return reconstruction_loss(
        frames, reconstruction, mean, log_variance, squared=weights.squared, kl=weights.kl, distance=distance
    )


def images_of(clips: ClipBatch, device: str) -> Tensor:
    """Decoded clips → single frames (n, C, H, W) in [-1, 1] on the device."""
    return PIXELS.encode(torch.from_numpy(clips.frames).to(device)).flatten(0, 1)


def make_validation(
    context: Context, config: AutoencoderTraining, dataset: Data, model: Autoencoder
) -> Callable[[], dict[str, float]]:
    """A function that measures held-out frames, always the same ones of the `val` split, after encoding and decoding.

    It returns `val_psnr` in dB, the mean over frames, and `val_loss`, the mean absolute error of pixels in [-1, 1].
    """
    share = rank_slice(build_plan(config, dataset, "val").batch(0), context.rank, context.world)
    frames = torch.from_numpy(load_clips(dataset, share).frames).to(context.device)

    tokenizer = AutoencoderTokenizer(model)

    def validate() -> dict[str, float]:
        reconstruction = tokenizer.decode(tokenizer.encode(frames))
        gap = (reconstruction.float() - frames.float()) / 127.5
        psnr = -10 * (gap / 2).square().mean((2, 3, 4)).log10()
        return context.mean(val_psnr=psnr.clamp(max=IDENTICAL_PSNR).mean().item(), val_loss=gap.abs().mean().item())

    return validate
