"""Reading a frame: which of a few things, at which of a few places, does it show?

What is possible is read off true views: a thing's pixels are those that differ from the view without it, in one piece,
in most of the clips that show it there (walls and floors may be lit otherwise, row by row, as in Doom one way and the
other); its colours are their mean, for a thing looks the same in every room. A frame is
answered by the thing and place that it is nearest to over those pixels, or by none, where it is nearer to the view
without any, or where nothing stands out of the frame's own rows: a grey frame shows nothing, though grey may be nearer
to a thing than a bright wall is. A blurred thing is read as long as it is more there than not.

Letters: n clips, m frames of each, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.evals.metric import Frame
from longtake.evals.metrics.psnr import psnr

Answer = tuple[int, int]
"""A thing and its place."""
Mask = NDArray[np.bool_]
"""Pixels of a frame (H, W)."""
APART = 40
"""Grey levels, over all channels, by which a pixel differs that shows something else."""


@dataclass(frozen=True)
class Sprites:
    """What can be answered: of each thing at each place its pixels, and their colours (H, W, 3)."""

    masks: Mapping[Answer, Mask]
    colours: Mapping[Answer, NDArray[np.float64]]

    def read(self, generated: Frame, empty: Frame) -> Answer | None:
        """What a frame (H, W, 3) shows, where `empty` is the view without anything; None: nothing."""
        frame = generated.astype(np.float64)
        bare = ((frame - empty) ** 2).sum(-1)
        nearer = {answer: self._nearer(answer, frame, bare) for answer in self.masks}
        best = max(nearer, key=nearer.__getitem__)
        return best if nearer[best] > 0 else None

    def _nearer(self, answer: Answer, frame: NDArray[np.float64], bare: NDArray[np.float64]) -> float:
        """By how much a frame is nearer to a thing than to the view without, and than its own rows without it are."""
        mask, colours = self.masks[answer], self.colours[answer]
        away = ((frame - colours) ** 2).sum(-1)
        around = ((np.median(frame, 1, keepdims=True) - colours) ** 2).sum(-1)
        return float(min((bare - away)[mask].sum(), (around - away)[mask].sum()))

    def psnr(self, answer: Answer, truth: Frame, generated: Frame) -> float:
        """PSNR, in dB, over the pixels of a thing alone."""
        mask = self.masks[answer]
        return psnr(truth[mask], generated[mask])


def find_sprites(truth: NDArray[np.uint8], empty: NDArray[np.uint8], shown: NDArray[np.int64]) -> Sprites:
    """What things look like, from true views (n, m, H, W, 3), views without (n, H, W, 3), and labels (n, m, 2).

    Raises:
        ValueError: nothing differs from the view without it, where the labels say there is something.
    """
    pieces: dict[Answer, list[tuple[Mask, Frame]]] = {}
    for clip, frame in np.ndindex(*shown.shape[:2]):
        thing, place = shown[clip, frame].tolist()
        piece = _piece(truth[clip, frame], empty[clip])
        pieces.setdefault((thing, place), []).append((piece, truth[clip, frame]))
    masks: dict[Answer, Mask] = {}
    colours: dict[Answer, NDArray[np.float64]] = {}
    for answer, masks_of_answer in sorted(pieces.items()):
        masks[answer] = np.mean([mask for mask, _ in masks_of_answer], 0) >= 0.5
        if not masks[answer].any():
            raise ValueError(f"thing {answer[0]} at place {answer[1]}: its view is the view without it")
        colours[answer] = np.asarray(np.mean([view for _, view in masks_of_answer], 0, dtype=np.float64))
    return Sprites(masks, colours)


def _piece(view: Frame, empty: Frame) -> Mask:
    """The largest piece of a view that differs from the view without; what differs along a whole row is light."""
    from scipy.ndimage import label

    change = view.astype(np.float64) - empty
    differs = np.abs(change - np.median(change, 1, keepdims=True)).sum(-1) > APART
    pieces, count = label(differs)
    if not count:
        return np.zeros(differs.shape, bool)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax())
