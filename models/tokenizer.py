"""Frames ↔ what the model sees. Pixels only for now: uint8 frames and floats in [-1, 1]."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def frames_to_model(frames: Tensor) -> Tensor:
    """uint8 frames (b, t, H, W, C) → floats (b, t, C, H, W) in [-1, 1]."""
    return rearrange(frames, "b t H W C -> b t C H W").float() / 127.5 - 1


def model_to_frames(x: Tensor) -> Tensor:
    """Floats (b, t, C, H, W) → uint8 frames (b, t, H, W, C), clipped and rounded."""
    pixels = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "b t C H W -> b t H W C")
