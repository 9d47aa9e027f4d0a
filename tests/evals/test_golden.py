"""Metrics against published figures and the code that their weights were published with: see golden_metrics.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from longtake.evals.metrics.fvd import clip_features, frechet_distance
from longtake.evals.metrics.psnr import psnr
from longtake.evals.metrics.ssim import ssim
from longtake.models.perceptual.i3d import I3d
from longtake.models.perceptual.lpips import Lpips, NetName, _unit

GOLDEN = json.loads((Path(__file__).parent / "golden_metrics.json").read_text())


def picture(name: str) -> NDArray[np.uint8]:
    made = {"height": 64, "width": 64, **GOLDEN["pictures"][name]}
    if "grey" in made:
        return np.full((made["height"], made["width"], 3), made["grey"], np.uint8)
    whole = getattr(data, made["picture"])()
    crop: NDArray[np.uint8] = whole[made["top"] :, made["left"] :][: made["height"], : made["width"]]
    return crop


def image(name: str) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture(name).copy()).movedim(-1, 0)[None] / 127.5 - 1


@pytest.fixture(scope="module")
def nets() -> dict[str, Lpips]:
    names: tuple[NetName, ...] = ("lpips_alex", "lpips_vgg")
    return {name: Lpips(name) for name in names}


@pytest.mark.parametrize("case", GOLDEN["lpips"], ids=lambda case: f"{case['net']}: {case['a']} | {case['b']}")
def test_lpips(case: dict[str, Any], nets: dict[str, Lpips]) -> None:
    found = nets[case["net"]](image(case["a"]), image(case["b"]))
    assert found.shape == (1,)
    assert found.item() == pytest.approx(case["expected"], abs=case["tolerance"])


def test_lpips_of_a_batch_is_that_of_its_pairs(nets: dict[str, Lpips]) -> None:
    names = ["face", "face, 4 rows down", "coffee"]
    a, b = torch.cat([image(name) for name in names]), image("face").expand(3, -1, -1, -1)
    alone = [nets["lpips_alex"](x[None], y[None]).item() for x, y in zip(a, b, strict=True)]
    assert nets["lpips_alex"](a, b).tolist() == pytest.approx(alone, abs=1e-5)


def test_lpips_is_a_loss(nets: dict[str, Lpips]) -> None:
    """It pulls a picture towards another, also from an exact copy of it, and has nothing to train or to save."""
    net, truth = nets["lpips_alex"], image("face")
    made = image("coffee").requires_grad_()
    (gradient,) = torch.autograd.grad(before := net(made, truth).sum(), made)
    after = net(made - 0.05 * gradient / gradient.abs().max(), truth)
    assert after.item() < before.item()
    copy = truth.clone().requires_grad_()
    assert torch.autograd.grad(net(copy, truth).sum(), copy)[0].isfinite().all()
    assert not list(net.parameters()) and not net.state_dict()


def test_features_that_vanish_have_a_gradient() -> None:
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(_unit(features).square().sum(), features)
    assert not gradient.any()


def test_lpips_refuses_what_it_cannot_see(nets: dict[str, Lpips]) -> None:
    for name, smallest in (("lpips_alex", 31), ("lpips_vgg", 16)):
        assert nets[name](torch.zeros(1, 3, smallest, 40), torch.ones(1, 3, smallest, 40)).item() > 0
        with pytest.raises(ValueError, match=f"{name}: images of {smallest - 1}x40, at least {smallest}"):
            nets[name](torch.zeros(1, 3, smallest - 1, 40), torch.ones(1, 3, smallest - 1, 40))


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["i3d"], ids=lambda case: f"{case['frames']} frames")
def test_i3d(case: dict[str, Any]) -> None:
    whole = getattr(data, case["picture"])()
    starts = [(case["down"] * t, case["left"] + case["right"] * t) for t in range(case["frames"])]
    clip = np.stack([whole[top : top + 224, left : left + 224] for top, left in starts])
    (found,) = clip_features(clip[None])  # at 224x224 the resize changes nothing
    assert found[:8] == pytest.approx(case["first"], abs=case["tolerance"])
    assert np.linalg.norm(found) == pytest.approx(case["norm"], abs=case["tolerance"])
    assert found.argmax() == case["argmax"]


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["fvd, black against white"], ids=lambda case: f"{case['frames']} frames")
def test_fvd(case: dict[str, Any]) -> None:
    """Two equal clips a side, so the covariances vanish: what is left is the distance of the means."""
    sides = []
    for grey in (0, 255):
        one = clip_features(np.full((1, case["frames"], 64, 64, 3), grey, np.uint8))
        sides.append(one.repeat(2, 0))
    assert frechet_distance(*sides) == pytest.approx(case["expected"], rel=case["relative"])


def test_i3d_refuses_clips_too_short() -> None:
    with pytest.raises(ValueError, match="8 frames of 224x224; at least 9 of 224x224"):
        I3d()(torch.zeros(1, 3, 8, 224, 224))


def test_frechet_distance_is_that_of_the_formula() -> None:
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(6, 6))
    a, b = draw.normal(size=(40, 6)), draw.normal(size=(50, 6)) @ mix + 0.3
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    by_formula = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(by_formula, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(by_formula, rel=1e-9)


def test_frechet_distance_lacking_full_rank() -> None:
    """Five clips in 400 dimensions: equal sets are at 0, a shift counts as itself, one clip has no covariance."""
    a = np.random.default_rng(0).normal(size=(5, 400))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(400 * 0.25, rel=1e-9)
    with pytest.raises(ValueError, match="5 real and 1 made clips; at least two"):
        frechet_distance(a, a[:1])


@pytest.mark.parametrize("names", GOLDEN["psnr and ssim"], ids=" | ".join)
def test_psnr_and_ssim_are_those_of_the_field(names: tuple[str, str]) -> None:
    """As scikit-image has them on [0, 1], and as Wang et al. write SSIM: Gaussian 11, sigma 1.5, no padding."""
    truth, made = picture(names[0]), picture(names[1])
    a, b = truth / 255, made / 255
    assert psnr(truth, made) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-4)
    form = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1, "channel_axis": -1}
    assert ssim(truth, made) == pytest.approx(structural_similarity(a, b, **form), abs=1e-4)
    assert ssim(truth, made) == pytest.approx(ssim_as_written(torch.from_numpy(a), torch.from_numpy(b)), abs=1e-4)


def ssim_as_written(a: Tensor, b: Tensor) -> float:
    """Equation 13 of Wang et al. (2004) per channel, on images (H, W, 3) in [0, 1]."""
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x.movedim(-1, 0)[:, None], window)

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(ratio.mean())
