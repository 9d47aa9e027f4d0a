"""The train loop of an autoencoder, beside that of the world model: the same stream, engine, steps and checkpoints.

Noise on the latents is drawn from (seed, step, place in the global batch): a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.datasets.mixture import Data, open_data
from longtake.errors import UserError
from longtake.jobs.train import init_weights
from longtake.jobs.train.config import AutoencoderTraining
from longtake.jobs.train.loop import StepLog, batch_metrics, prefetch_first, stream, timed
from longtake.jobs.train.loss import distance_of, seeded
from longtake.jobs.train.plan import build_plan
from longtake.models.autoencoder import Autoencoder
from longtake.models.description import AutoencoderDescription
from longtake.models.losses import Distance, reconstruction_loss
from longtake.models.tokenizer import PIXELS, AutoencoderTokenizer
from longtake.streaming.clips import ClipBatch, load_clips
from longtake.streaming.plan import rank_slice
from longtake.training.engine import Engine, step_of

if TYPE_CHECKING:
    from longtake.training.context import Context

IDENTICAL_PSNR = 100.0
"""Of a frame that comes back as it was, so that means stay finite."""


def autoencoder_loop(context: Context, config: AutoencoderTraining) -> None:
    """Train one rank from the newest checkpoint (or from the start) to the last step."""
    dataset = open_data(context.store, config.data.dataset)
    torch.manual_seed(config.seed)
    with context.resume() as folder:
        start = step_of(folder) if folder else 0
        clips_to_come = prefetch_first(stream(context, config, dataset, start))
        model = Autoencoder(config.model)
        if folder is None:
            init_weights.fill(model, config, context.store)
        engine = Engine(model, config.engine, steps=config.steps, device=context.device)
        if folder:
            engine.load(folder)
    distance = distance_of(config, model)
    log = StepLog(context, start, config)
    validate = make_validation(context, config, dataset, model)
    for step, clips, waited in timed(clips_to_come):
        loss = loss_of(engine, config, context, step, clips, distance)
        if not loss.isfinite():
            raise UserError(f"step {step}: the loss is {loss.item()}; lower engine.lr")
        engine.backward(loss)
        lr, norm = engine.lr, engine.step()
        done = step + 1
        numbers = {"loss": loss.item(), "grad_norm": norm, "lr": lr, "data_wait": waited}
        log.add(step, numbers | batch_metrics(clips, dataset))
        if done % config.validation.every == 0 or done == config.steps:
            log.note(**validate())
        context.progress(done, config.steps, **log.latest)
        if done % config.checkpoint_every == 0 or done == config.steps:
            log.flush()
            context.save(done, writer(context, engine, config, done), log.metrics())
    log.close()


def loss_of(
    engine: Engine,
    config: AutoencoderTraining,
    context: Context,
    step: int,
    clips: ClipBatch,
    distance: Distance | None,
) -> Tensor:
    """The loss of this rank's frames."""
    frames = images_of(clips, context.device)
    noise = None
    if config.loss.kl:
        height, width, channels = config.model.latent
        length = clips.frames.shape[1]
        places = [slot * length + frame for slot in clips.slot.tolist() for frame in range(length)]
        draws = [torch.randn(channels, height, width, generator=seeded(config.seed, step, place)) for place in places]
        noise = torch.stack(draws).to(context.device)
    made, mean, log_variance = engine(frames, noise)
    weights = config.loss
    return reconstruction_loss(
        frames, made, mean, log_variance, squared=weights.squared, kl=weights.kl, distance=distance
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
        made = tokenizer.decode(tokenizer.encode(frames))
        gap = (made.float() - frames.float()) / 127.5
        psnr = -10 * (gap / 2).square().mean((2, 3, 4)).log10()
        return context.mean(val_psnr=psnr.clamp(max=IDENTICAL_PSNR).mean().item(), val_loss=gap.abs().mean().item())

    return validate


def writer(context: Context, engine: Engine, config: AutoencoderTraining, step: int) -> Callable[[Path], None]:
    """What a rank writes into a checkpoint: the engine's part, and the model's config beside its weights."""

    def write(folder: Path) -> None:
        engine.save(folder, {"step": step})
        if context.rank == 0:
            AutoencoderDescription(model=config.model).write(folder)

    return write
