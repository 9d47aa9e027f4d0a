"""The autoencoder and the tokenizers: shapes, what training gains, unit variance, folders, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.models import tokenizer as tokenizers
from longtake.models.autoencoder import Autoencoder
from longtake.models.conditions import Conditions
from longtake.models.config import AutoencoderConfig, LayerConfig, ModelConfig, SamplerConfig
from longtake.models.description import parse_tokenizer
from longtake.models.losses import reconstruction_loss
from longtake.models.rollout import rollout
from longtake.models.tokenizer import PIXELS, AutoencoderTokenizer, load_tokenizer
from longtake.models.world_model import WorldModel

SMALL = AutoencoderConfig(height=16, width=16, downsample=4, widths=[16, 16], latent_channels=4)
KL = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [32, 64, 64, 64],
    "scaling_factor": 0.18215,
    "act_fn": "silu",
}


def pictures(count: int) -> Tensor:
    """uint8 frames (1, count, 16, 16, 3): two colours, one edge each."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(0, 256, (2, count, 1, 1, 3), generator=generator)
    edge = torch.randint(4, 12, (count, 1, 1), generator=generator)
    left = (torch.arange(16)[None, None] < edge).expand(count, 16, 16)
    return torch.where(left[..., None], *colors).to(torch.uint8)[None]


def train(model: Autoencoder, frames: Tensor, steps: int) -> None:
    images = PIXELS.encode(frames)[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        noise = torch.randn(len(images), 4, 4, 4, generator=generator)
        loss = reconstruction_loss(images, *model.train()(images, noise), squared=0.0, kl=1e-5)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def psnr(truth: Tensor, made: Tensor) -> float:
    return float(-10 * ((truth.float() - made.float()) / 255).square().mean().log10())


@pytest.fixture(scope="module")
def trained() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(SMALL)
    train(model, pictures(24), steps=80)
    return model.eval()


@pytest.mark.parametrize(("downsample", "widths"), [(2, [8]), (4, [8, 16]), (8, [8, 16, 24])])
def test_shapes(downsample: Any, widths: list[int]) -> None:
    config = AutoencoderConfig(height=16, width=24, channels=3, latent_channels=5, downsample=downsample, widths=widths)
    tokenizer = AutoencoderTokenizer(Autoencoder(config))
    frames = torch.randint(0, 256, (2, 3, 16, 24, 3), dtype=torch.uint8)
    latents = tokenizer.encode(frames)
    assert config.latent == (16 // downsample, 24 // downsample, 5)
    assert latents.shape == (2, 3, 5, 16 // downsample, 24 // downsample)
    made = tokenizer.decode(latents)
    assert made.shape == frames.shape
    assert made.dtype == torch.uint8


def test_training_gains_decibels_and_latents_have_unit_variance(trained: Autoencoder) -> None:
    frames = pictures(24)
    torch.manual_seed(0)
    before, after = AutoencoderTokenizer(Autoencoder(SMALL)), AutoencoderTokenizer(trained)
    gain = psnr(frames, after.decode(after.encode(frames))) - psnr(frames, before.decode(before.encode(frames)))
    assert gain > 10
    latents = after.encode(frames)
    assert latents.mean((0, 1, 3, 4)).abs().max() < 0.2
    assert 0.7 < latents.std((0, 1, 3, 4)).min() <= latents.std((0, 1, 3, 4)).max() < 1.3


def test_encoding_measures_nothing_and_gives_no_gradient(trained: Autoencoder) -> None:
    before = trained.measured.clone()
    assert before == 80
    assert not AutoencoderTokenizer(trained).encode(pictures(2)).requires_grad
    assert trained.measured == before


def test_long_clips_go_in_pieces_and_come_out_the_same(trained: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, frames = AutoencoderTokenizer(trained), pictures(7)
    whole = tokenizer.encode(frames)
    seen: list[int] = []
    monkeypatch.setattr(tokenizers, "PIECE", 3 * 16 * 16)
    trained.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert torch.allclose(tokenizer.encode(frames), whole, atol=1e-5)
    assert seen == [3, 3, 1]
    assert torch.equal(tokenizer.decode(whole[:, :5]), tokenizer.decode(whole)[:, :5])


def test_a_saved_tokenizer_is_the_same(trained: Autoencoder, tmp_path: Path) -> None:
    tokenizer = AutoencoderTokenizer(trained)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert torch.equal(again.encode(pictures(3)), tokenizer.encode(pictures(3)))
    written = json.loads((tmp_path / "config.json").read_text())
    written["model"]["latent_channels"] = 6
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="these weights do not fit"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"height": 20}, "downsample: 8 does not divide height 20"),
        ({"downsample": 4}, "widths: 3 of them, but downsample 4 has 2 halvings"),
        ({"widths": [16, 20, 32]}, "widths: 20 is not a multiple of 8"),
        ({"downsample": 3}, "Input should be 2, 4 or 8"),
        ({"kind": "world_model"}, "Input should be 'autoencoder'"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        AutoencoderConfig(**changes)
    assert told in str(caught.value)


def test_frames_of_another_shape_are_refused(trained: Autoencoder) -> None:
    with pytest.raises(ValueError, match=r"frames: \(3, 8, 8\), this autoencoder takes \(3, 16, 16\)"):
        trained.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="was trained on frames of 16 x 16 x 3, these are 32 x 32 x 3"):
        SMALL.latent_shape((32, 32, 3))


def test_a_diffusers_folder_is_known_by_its_config(tmp_path: Path) -> None:
    assert parse_tokenizer(json.dumps(KL)).latent_shape((64, 32, 3)) == (8, 4, 4)
    with pytest.raises(ValueError, match="multiples of 8, with 3 channels; these are 60 x 64 x 3"):
        parse_tokenizer(json.dumps(KL)).latent_shape((60, 64, 3))
    with pytest.raises(ValueError, match="holds world_model, expected an autoencoder"):
        parse_tokenizer('{"model": {"kind": "world_model"}}')


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is not None, reason="diffusers is installed")
def test_without_diffusers_its_folder_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(KL))
    with pytest.raises(ValueError, match=r'diffusers is missing: pip install "longtake\[vae\]"'):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("clip", "largest"), [(1.0, 1.0), (2.5, 2.5), (None, 3.0)])
def test_the_sampler_keeps_to_what_clean_values_can_be(clip: float | None, largest: float) -> None:
    layers = [LayerConfig(mixer="none")]
    config = ModelConfig(
        height=2, width=2, channels=4, patch=1, dim=8, heads=2, headdim=8, prediction="x0", clip=clip, layers=layers
    )
    model = WorldModel(config)
    torch.nn.init.constant_(model.patches_out.bias, 3.0)
    conditions = Conditions(pose=torch.randn(1, 2, 4))
    made, _ = rollout(model, conditions, 2, None, SamplerConfig(steps=2), [torch.Generator().manual_seed(0)])
    assert made.max().item() == pytest.approx(largest, abs=1e-5)
