"""Pictures of a dataset: its frames, or what its latents decode to; and which dataset has the true ones."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtake.errors import UserError
from longtake.jobs.latents import tokenizers

if TYPE_CHECKING:
    from longtake.datasets.dataset import Dataset
    from longtake.models.tokenizer import Tokenizer
    from longtake.storage.store import Store

AT_ONCE = 64  # frames that are decoded at a time


def frame_shape(dataset: Dataset) -> tuple[int, ...]:
    """(H, W, channels) of a picture."""
    latents = dataset.manifest.latents
    return dataset.frame_shape if latents is None else latents.frame_shape


def shown(dataset: Dataset, frames: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames (T, ...) of a dataset as pictures uint8 (T, H, W, 3): pixels as they are, latents decoded."""
    if dataset.manifest.latents is None:
        return frames
    import torch

    from longtake.models.tokenizer import as_latents

    tokenizer = _tokenizer(dataset.store, dataset.name, dataset.manifest.seal)
    pieces = [as_latents(torch.tensor(frames[None, a : a + AT_ONCE])) for a in range(0, len(frames), AT_ONCE)]
    return np.concatenate([tokenizer.decode(piece)[0].numpy() for piece in pieces])


def true_of(store: Store, name: str) -> str:
    """The dataset with the true pictures of a dataset: itself, or the one whose frames were encoded.

    Raises:
        UserError: that one is gone, or another now.
    """
    latents = store.dataset(name).manifest.latents
    if latents is None:
        return name
    kept = store.exists(f"datasets/{latents.dataset}/manifest.json")
    if not kept or store.dataset(latents.dataset).fingerprint != latents.fingerprint:
        raise UserError(
            f"dataset {name} holds latents of {latents.dataset}, which is {'another now' if kept else 'not here'}: "
            f"bring it back, or ask for --set dataset={name} to compare with decoded frames"
        )
    return latents.dataset


@lru_cache(maxsize=4)
def _tokenizer(store: Store, name: str, seal: int) -> Tokenizer:
    """What encoded a dataset; kept for its next frames. `seal` tells one dataset of a name from the next."""
    return tokenizers.of_dataset(store, name)
