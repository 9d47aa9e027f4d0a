"""Metrics on uint8 frames; each compares what was made with the truth of the same moment, but fvd.

psnr: peak signal-to-noise ratio, dB, higher is better, over all pixels and channels of one frame; identical frames
count as 100 dB, so that means stay finite.
ssim: structural similarity, at most 1, higher is better; Gaussian window 11, sigma 1.5 (Wang et al., 2004), the
form the field publishes.
lpips_alex, lpips_vgg: how far apart two frames look to AlexNet or VGG16, from 0, lower is better
(models/perceptual/lpips.py). They are two measures: figures of one say nothing about the other.
sharpness: detail against the truth's, dB, best at 0. Variance of the Laplacian (Pech-Pacheco et al., 2000) of the grey
frame over that of the truth: below 0 is blurrier than the truth, which PSNR forgives; above 0 is noisier.
drift: how far the colours have gone from the truth's, grey levels, from 0, lower is better. The means and spreads of
the colours of a frame, root mean square: a long generation that fades, darkens or burns out has it.
motion: change from frame to frame against the truth's, dB, best at 0. Mean squared change from the frame before over
that of the truth (of a clip's first frame: to the next): far below 0 a generation has frozen, which is how many
collapse; above 0 it flickers.
seams: jumps where spatial blocks meet against the truth's, dB, best at 0. Mean squared jump across every 8th row and
column of pixels, where the smallest spatial blocks of the shipped models meet (a token is 8 pixels, or a multiple),
over that everywhere else, against the same of the truth: above 0 blocks do not hang together.
fvd: the distance between sets of whole clips, context included, lower is better (evals/fvd.py).
prefill_ms: time per frame shown, lower is better; step_ms: time per frame made, lower is better; memory_bytes: what
is carried of the frames shown, lower is better (evals/tasks/cost.py, capacity.py).
accuracy: 1 for a question about an earlier frame that is answered correctly, else 0 (evals/tasks/questions.py).
there: 1 for a thing that is there again, else 0; place: 1 for one that is where it was; colour: 1 for one that has its
colour; object_psnr: PSNR, in dB, of its pixels alone (evals/tasks/permanence.py).
recall: the share of places that are told apart by what is made of them, from 0 to 1; bits: what that tells at least,
per clip; bits_per_byte: the same per byte carried (evals/tasks/capacity.py).

Letters: n frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from longtake.models.perceptual.lpips import Lpips, NetName

Frame = NDArray[np.uint8]
"""One frame (H, W, 3)."""
Frames = NDArray[np.uint8]
"""Frames (n, H, W, 3)."""
Clips = NDArray[np.uint8]
"""Clips (b, t, H, W, 3)."""
Values = NDArray[np.float64]
"""One value per frame (n,)."""
MetricName = Literal[
    "psnr",
    "ssim",
    "lpips_alex",
    "lpips_vgg",
    "sharpness",
    "drift",
    "motion",
    "seams",
    "fvd",
    "prefill_ms",
    "step_ms",
    "memory_bytes",
    "accuracy",
    "there",
    "place",
    "colour",
    "object_psnr",
    "recall",
    "bits",
    "bits_per_byte",
]
IDENTICAL_PSNR = 100.0
LPIPS_NETS: tuple[tuple[NetName, str, int], ...] = (
    ("lpips_alex", "LPIPS (AlexNet)", 31),
    ("lpips_vgg", "LPIPS (VGG16)", 16),
)
LPIPS_BATCH = 32  # images that go through a net at once
WINDOW = 11  # pixels a side of SSIM's Gaussian: 3.5 sigma each way
BORDER = 8  # pixels from one border of blocks to the next
ROUNDED = 2 / 12
"""Mean squared difference that rounding to whole grey levels makes by itself."""
ROUNDING = 20 / 12
"""Variance of the Laplacian that rounding to whole grey levels makes by itself: 1/12 times its squared weights."""


def psnr(truth: Frame, made: Frame) -> float:
    """PSNR of one frame (H, W, 3), in dB."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(truth, made):
        return IDENTICAL_PSNR
    return float(peak_signal_noise_ratio(truth, made, data_range=255))


def ssim(truth: Frame, made: Frame) -> float:
    """SSIM of one frame (H, W, 3)."""
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        truth,
        made,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def sharpness(truth: Frame, made: Frame) -> float:
    """Sharpness of a frame (H, W, 3) against the truth's, in dB; what rounding makes counts for both."""
    return float(10 * np.log10((_detail(made) + ROUNDING) / (_detail(truth) + ROUNDING)))


def _detail(frame: Frame) -> float:
    """Variance of the Laplacian of the grey frame, in grey levels squared."""
    from scipy.ndimage import laplace
    from skimage.color import rgb2gray

    return float(laplace(rgb2gray(frame) * 255).var())


def drift(truth: Frame, made: Frame) -> float:
    """Distance of the colours' means and spreads of a frame (H, W, 3) to the truth's, in grey levels."""
    apart = [statistic(made, axis=(0, 1)) - statistic(truth, axis=(0, 1)) for statistic in (np.mean, np.std)]
    return float(np.sqrt(np.mean(np.square(apart).sum(0))))


def motion(truth: Clips, made: Clips) -> NDArray[np.float64]:
    """Change from frame to frame of clips (b, t, H, W, 3) against the truth's, in dB (b, t)."""
    return np.asarray(10 * np.log10((_change(made) + ROUNDED) / (_change(truth) + ROUNDED)))


def _change(clips: Clips) -> NDArray[np.float64]:
    """Mean squared change from the frame before (b, t); of the first one to the next, of a single one none."""
    if clips.shape[1] < 2:
        return np.zeros(clips.shape[:2])
    squared = (np.diff(clips.astype(np.float64), axis=1) ** 2).mean((2, 3, 4))
    return np.concatenate([squared[:, :1], squared], 1)


def seams(truth: Frame, made: Frame) -> float:
    """Jumps of a frame (H, W, 3) across the borders of blocks against those elsewhere, and against the truth's, in dB.

    Raises:
        ValueError: a frame without borders.
    """
    if min(made.shape[:2]) <= BORDER:
        raise ValueError(f"seams: frames are {made.shape[0]}x{made.shape[1]}, without a border every {BORDER} pixels")
    return _jumps(made) - _jumps(truth)


def _jumps(frame: Frame) -> float:
    """Mean squared jumps at borders over those elsewhere, in dB."""
    at, off = [], []
    for axis in (0, 1):
        jumps = (np.diff(frame.astype(np.float64), axis=axis) ** 2).mean((1 - axis, 2))
        border = np.arange(1, len(jumps) + 1) % BORDER == 0
        at.append(jumps[border])
        off.append(jumps[~border])
    return float(10 * np.log10((np.concatenate(at).mean() + ROUNDED) / (np.concatenate(off).mean() + ROUNDED)))


def lpips(name: NetName, truth: Frames, made: Frames) -> Values:
    """LPIPS of frames by one net, a batch at a time.

    Raises:
        MissingWeights: those of the net are not installed.
        ValueError: frames smaller than the net can see.
    """
    import torch
    from torch import Tensor

    from longtake.models.tokenizer import PIXELS

    def images(frames: Frames) -> Tensor:
        return PIXELS.encode(torch.from_numpy(frames)[None])[0]

    found = []
    with torch.no_grad():
        for first in range(0, len(truth), LPIPS_BATCH):
            part = slice(first, first + LPIPS_BATCH)
            found.append(_lpips_net(name)(images(truth[part]), images(made[part])).double().numpy())
    return np.concatenate(found)


@lru_cache
def _lpips_net(name: NetName) -> Lpips:
    from longtake.models.perceptual.lpips import Lpips

    return Lpips(name).eval()


def _each(measure: Callable[[Frame, Frame], float]) -> Callable[[Frames, Frames], Values]:
    """A measure of one frame, of many."""
    return lambda truth, made: np.array([measure(*pair) for pair in zip(truth, made, strict=True)])


@dataclass(frozen=True)
class Metric:
    """What a metric is called and which way it points; `measure` takes truth and made, and is None for what is not of
    single frames: fvd, and what only one task measures."""

    title: str
    better: Literal["higher", "lower", "zero"]
    digits: int
    """Decimals worth printing."""
    measure: Callable[[Frames, Frames], NDArray[np.float64]] | None
    weights: str | None = None
    """What it needs of `longtake.models.perceptual.weights.FILES`."""
    task: str | None = None
    """The one task that measures it."""
    clips: bool = False
    """Whether `measure` takes whole clips (b, t, H, W, 3), since one frame says nothing."""
    smallest: int = 1
    """Pixels a side that frames need: a window of the metric has to fit."""

    @property
    def heading(self) -> str:
        """The title, with the direction where it is not up."""
        return self.title + {"higher": "", "lower": ", lower is better", "zero": ", best at 0"}[self.better]

    def goodness(self, value: float) -> float:
        """The larger, the better."""
        return {"higher": value, "lower": -value, "zero": -abs(value)}[self.better]


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR (dB)", "higher", 2, _each(psnr)),
    "ssim": Metric("SSIM", "higher", 3, _each(ssim), smallest=WINDOW),
    **{
        name: Metric(title, "lower", 3, partial(lpips, name), weights=name, smallest=smallest)
        for name, title, smallest in LPIPS_NETS
    },
    "sharpness": Metric("Sharpness (dB)", "zero", 2, _each(sharpness)),
    "drift": Metric("Drift (grey levels)", "lower", 1, _each(drift)),
    "motion": Metric("Motion (dB)", "zero", 2, motion, clips=True),
    "seams": Metric("Seams (dB)", "zero", 2, _each(seams), smallest=BORDER + 1),
    "fvd": Metric("FVD", "lower", 1, None, "i3d"),
    "prefill_ms": Metric("Time per frame shown (ms)", "lower", 2, None, task="cost"),
    "step_ms": Metric("Time per frame made (ms)", "lower", 1, None, task="cost"),
    "memory_bytes": Metric("Memory (bytes)", "lower", 0, None, task="cost"),
    "accuracy": Metric("Accuracy", "higher", 2, None, task="questions"),
    "there": Metric("There again", "higher", 2, None, task="permanence"),
    "place": Metric("In its place", "higher", 2, None, task="permanence"),
    "colour": Metric("In its colour", "higher", 2, None, task="permanence"),
    "object_psnr": Metric("PSNR of its pixels (dB)", "higher", 2, None, task="permanence"),
    "recall": Metric("Places recalled", "higher", 2, None, task="capacity"),
    "bits": Metric("Bits remembered", "higher", 1, None, task="capacity"),
    "bits_per_byte": Metric("Bits per byte", "higher", 4, None, task="capacity"),
}
"""All metrics, in the order in which they are shown."""
